//! worker
pub mod plane;
