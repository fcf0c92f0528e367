//! A world in simulated time: processes, a network between them, and nothing that two runs of one seed could differ in.
//!
//! Whatever runs here is what is shipped: the drivers with their machines, the front door, the codec. Only time, tasks, chance and the wires
//! are the world's, so that hours pass in seconds and a seed tells a whole run.

mod caller;
mod clock;
mod cluster;
mod host;
mod judge;
mod link;
mod net;
mod schedule;
mod store;
mod world;

pub use clock::{Clock, Node};
pub use cluster::{Report, shrink, simulate};
pub use link::{Cable, Conditions, Pipe, cable};
pub use net::Network;
pub use schedule::{Fault, KINDS, Plan, Schedule};
pub use store::{LEASE, SharedStore, SimBackend, Trap};
