//! The data plane and what is built on it, over real sockets.

mod contract;
mod fake_nccl;
mod fuzz;
mod nccl;
mod processes;
mod reduce;
mod rendezvous;
mod worlds;

/// The contract on every implementation.
mod tcp {
    use std::time::Duration;

    crate::contract::contract_tests!(crate::worlds::tcp);

    #[test]
    fn the_bytes_that_were_left_are_told() {
        let mut planes = crate::worlds::tcp(2, Duration::from_millis(20));
        let error = crate::contract::receive(&mut *planes[0], 1).expect_err("nobody sends");
        assert!(error.to_string().contains("(0 bytes left to send, 5 to receive)"), "{error}");
    }
}
