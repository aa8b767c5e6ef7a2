//! Finds out whether a worker's process still listens at its data-plane address.

use std::{io, time::Duration};

use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

use crate::machine::Alive;

/// A live worker leaves a silent connection open for longer than this.
const PATIENCE: Duration = Duration::from_millis(150);

/// Connects and listens for a moment. A process that is gone refuses or drops the connection; a live one, and one that
/// cannot be reached at all, is left to its heartbeat.
pub async fn probe(address: &str) -> Alive {
    match timeout(PATIENCE, is_dropped(address)).await {
        Ok(Ok(true)) => Alive::No,
        Ok(Err(error)) if says_that_nobody_is_there(&error) => Alive::No,
        _ => Alive::Yes,
    }
}

async fn is_dropped(address: &str) -> io::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    Ok(stream.read(&mut [0]).await? == 0)
}

fn says_that_nobody_is_there(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_listener_that_keeps_the_connection_is_alive() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address").to_string();
        assert_eq!(probe(&address).await, Alive::Yes);
    }

    #[tokio::test]
    async fn a_closed_port_is_dead() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address").to_string();
        drop(listener);
        assert_eq!(probe(&address).await, Alive::No);
    }
}
