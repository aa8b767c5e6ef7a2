//! What is trained, as pure functions of the recipe and the corpus's sizes.
//!
//! Nothing here reads a file, a clock or the environment, and nothing depends on how many workers there are, except
//! [`slots`], which divides a step's fixed work among them. Start reading at [`config::Recipe`].

pub mod ids;
pub mod layout;
pub mod model;
pub mod slots;
