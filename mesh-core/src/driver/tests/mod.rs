//! The server as its users and clients see it, in simulated time.

mod accept;
mod cluster;
mod commands;
mod front_door;
mod lifecycle;
mod memberships;
mod outage;
mod records;
