//! mesh on tokio.
