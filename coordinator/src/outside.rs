//! What the coordinator reaches out to: workers' data-plane addresses, and another coordinator.

use futures::future::{BoxFuture, FutureExt};
use polo_transport::Client;
use tonic::transport::{Channel, Endpoint, Error};

use crate::{machine::Alive, probe::probe};

/// The network as the coordinator uses it; the simulation brings its own.
pub trait Outside: Send + Sync {
    /// Whether a process still listens at `address`.
    fn probe<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Alive>;

    /// Calls a gRPC server.
    fn connect<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, Result<Channel, Error>>;
}

/// The real network.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// How other coordinators are reached.
    pub client: Client,
}

impl Outside for Network {
    fn probe<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Alive> {
        probe(address).boxed()
    }

    fn connect<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, Result<Channel, Error>> {
        self.client.connect(endpoint.clone()).boxed()
    }
}
