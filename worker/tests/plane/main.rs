//! The data plane and what is built on it, over real sockets.

mod contract;
mod reduce;
mod rendezvous;
mod worlds;

/// The contract on every implementation.
mod tcp {
    crate::contract::contract_tests!(crate::worlds::tcp);
}
