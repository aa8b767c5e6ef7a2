//! store

pub mod recipe_file;
