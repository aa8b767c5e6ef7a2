//! The status of a run whose coordinator comes and goes.

use std::time::Duration;

use polo_proto::v1::{Status, WatchStatusRequest};
use tokio::sync::watch;

use crate::control::AddressArgs;

/// Between two tries to reach a coordinator that is away.
const PAUSE: Duration = Duration::from_millis(50);

/// Follows the coordinator at `url` for as long as anybody listens.
pub async fn follow(url: String, status: watch::Sender<Status>) {
    while !status.is_closed() {
        // That it cannot be reached, or is lost, is what is expected here.
        let _ = follow_one(&url, &status).await;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn follow_one(url: &str, status: &watch::Sender<Status>) -> Option<()> {
    let mut client = AddressArgs::to(url).connect().await.ok()?.client;
    let mut stream = client.watch_status(WatchStatusRequest {}).await.ok()?.into_inner();
    while let Some(response) = stream.message().await.ok()? {
        status.send(response.status?).ok()?;
    }
    Some(())
}
