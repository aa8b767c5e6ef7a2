//! coordinator
pub mod machine;
