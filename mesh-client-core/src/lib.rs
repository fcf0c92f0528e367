//! The sans-IO client of mesh.
