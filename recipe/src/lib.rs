//! What is trained, as pure functions of the recipe and the corpus's sizes.
//!
//! Nothing here reads a file, a clock or the environment, and only [`slots`], [`ownership`] and [`footprint`] know how many
//! workers there are. Start reading at [`config::Recipe`], what a user writes, and [`plan::Plan`], what follows from it:
//! for every step its learning rate, and for every sample its source ([`mixture`]) and its place there ([`order`]).

pub mod buffers;
pub mod config;
pub mod error;
pub mod footprint;
pub mod ids;
pub mod layout;
pub mod mistakes;
pub mod mixture;
pub mod model;
pub mod order;
pub mod ownership;
pub mod plan;
pub mod schedule;
pub mod slots;
#[cfg(test)]
mod testing;
pub mod tokens;
pub mod utilization;
