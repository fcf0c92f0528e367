//! What the tests of mesh share.
