//! What the coordinator reaches out to: workers' data-plane addresses, and another coordinator.

use futures::future::{BoxFuture, FutureExt};
use tonic::transport::{Channel, Endpoint, Error};

use crate::{machine::Alive, probe::probe};

/// The network as the coordinator uses it; the simulation brings its own.
pub trait Outside: Send + Sync {
    /// Whether a process still listens at `address`.
    fn probe<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Alive>;

    /// Calls a gRPC server.
    fn connect<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, Result<Channel, Error>>;
}

/// TCP.
#[derive(Debug, Clone, Copy)]
pub struct Tcp;

impl Outside for Tcp {
    fn probe<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Alive> {
        probe(address).boxed()
    }

    fn connect<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, Result<Channel, Error>> {
        endpoint.connect().boxed()
    }
}
