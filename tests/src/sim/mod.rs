//! A world in simulated time: processes, a network between them, and nothing that two runs of one seed could differ in.
//!
//! Whatever runs here is what is shipped: the drivers with their machines, the front door, the codec. Only time, tasks, chance and the wires
//! are the world's, so that hours pass in seconds and a seed tells a whole run.

mod clock;
mod cluster;
mod link;
mod net;
mod store;

pub use clock::{Clock, Node};
pub use cluster::{Plan, Report, simulate};
pub use link::{Cable, Conditions, Pipe, cable};
pub use net::Network;
pub use store::{LEASE, SharedStore, SimBackend};
