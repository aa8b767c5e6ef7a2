//! Who holds a run, and whether that one is still there.

use std::{
    fmt,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::outside::Outside;

/// A coordinator that serves answers a question within this time.
const PATIENCE: Duration = Duration::from_secs(2);

/// A coordinator that took up a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Drawn anew by every coordinator.
    pub coordinator: u64,
    /// Where it runs.
    pub host: String,
    /// Its process there.
    pub pid: u32,
    /// Where it listens.
    pub address: String,
    /// Whether it speaks TLS there.
    #[serde(default)]
    pub is_encrypted: bool,
    /// When it took up the run, in milliseconds since 1970.
    pub since_unix_ms: u64,
}

impl Holder {
    /// This process, listening at `address`; one that listens on every interface is sought by its host's name.
    pub fn here(address: SocketAddr, is_encrypted: bool) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let is_everywhere = address.ip().is_unspecified();
        Self {
            coordinator: rand::random(),
            address: if is_everywhere { format!("{host}:{}", address.port()) } else { address.to_string() },
            host,
            is_encrypted,
            pid: std::process::id(),
            since_unix_ms: since.as_millis() as u64,
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, pid, address, since_unix_ms, .. } = self;
        let since = SystemTime::UNIX_EPOCH + Duration::from_millis(*since_unix_ms);
        let seconds = since.elapsed().unwrap_or_default().as_secs();
        write!(f, "the coordinator at {address} (pid {pid} on {host}, since {seconds} s ago)")
    }
}

/// Whether the coordinator at the holder's address serves the run of this identity. Whoever listens there in its place
/// knows that it does not. This is asked of the health service, which answers everybody.
pub async fn is_alive(holder: &Holder, recipe_identity: &str, own: &Holder, outside: &dyn Outside) -> bool {
    if (&holder.host, &holder.address) == (&own.host, &own.address) {
        return false;
    }
    matches!(timeout(PATIENCE, serves(holder, recipe_identity, outside)).await, Ok(Ok(true)))
}

async fn serves(
    holder: &Holder,
    recipe_identity: &str,
    outside: &dyn Outside,
) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let scheme = if holder.is_encrypted { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{}", holder.address))?;
    let mut client = HealthClient::new(outside.connect(&endpoint).await?);
    let health = client.check(HealthCheckRequest { service: recipe_identity.into() }).await?.into_inner();
    Ok(health.status() == ServingStatus::Serving)
}
