//! What a worker does: corpus -> batch -> model -> collective -> optimizer -> checkpoint.
//!
//! It never decides who takes part, and nothing in it may make the state depend on the world. One thread owns all
//! tensors ([`trainer`]); beside it an agent ([`agent`]) talks with the coordinator, and a loader reads ahead. Start
//! reading at [`generation`], one membership's life, and [`step`], one step of it.

pub mod agent;
pub mod arrival;
pub mod boundary;
pub mod checkpointer;
pub mod corpus;
pub mod decision;
pub mod desk;
pub mod flat;
pub mod generation;
pub mod init;
pub mod loader;
pub mod model;
pub mod moves;
pub mod optimizer;
pub mod params;
pub mod plane;
pub mod pool;
pub mod reduce;
pub mod rig;
pub mod room;
pub mod session;
pub mod state;
pub mod step;
pub mod streams;
pub mod torch;
pub mod trace;
pub mod trainer;
