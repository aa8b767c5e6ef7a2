//! Steps of whole worlds over real sockets, while ranks join, where a stage begins with moments of its own, and while numbers
//! are wrong: bits that flip on the way, loss and gradients that are not finite.

mod all_reduce;
mod arithmetic;
mod copies;
mod flips;
mod gathering;
mod joining;
mod memory;
mod not_finite;
mod resetting;
mod scene;
#[path = "../plane/worlds.rs"]
#[expect(dead_code, reason = "the plane's own tests use more of it")]
mod worlds;
