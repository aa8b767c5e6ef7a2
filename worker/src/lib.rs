//! worker
pub mod plane;
pub mod reduce;
