//! The server as its users and clients see it, in simulated time.

/// What a server of a pair makes of a call, in simulated time.
macro_rules! on {
    ($pair:expr, $server:ident, |$name:ident| $body:expr) => {{
        let $name = $pair.$server.clone();
        $pair.sim.wait(async move { $body.await })
    }};
}

mod accept;
mod cluster;
mod commands;
mod front_door;
mod lifecycle;
mod memberships;
mod outage;
mod records;
mod turns;
