//! store

pub mod corpus;
pub mod indexed;
