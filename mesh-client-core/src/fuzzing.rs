//! Bodies of the fuzz targets; no part of the API that versions promise.

pub use crate::client::fuzzing::machine;
