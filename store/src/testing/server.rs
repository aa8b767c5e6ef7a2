//! A real S3 server as a child process, gone when dropped.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{Store, StoreError};

const START_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// A running S3 server with one bucket. Killed, and its data removed, on drop.
#[derive(Debug)]
pub struct Server {
    process: Child,
    port: u16,
    bucket: String,
    _folder: TempDir,
}

impl Server {
    /// Starts `command`, which serves `bucket` from `folder` at `port` of this host, and waits until it answers, for 30 s
    /// at most. `part` is what `scripts/setup` calls it.
    pub(super) async fn start(
        part: &str,
        mut command: Command,
        folder: TempDir,
        port: u16,
        bucket: &str,
    ) -> std::io::Result<Self> {
        command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().map_err(|e| {
            let program = Path::new(command.get_program()).display();
            std::io::Error::new(e.kind(), format!("cannot start {program}: {e}; run scripts/setup {part} first"))
        })?;
        let mut started = Self { process, port, bucket: bucket.to_owned(), _folder: folder };
        started.wait_until_ready(part).await?;
        Ok(started)
    }

    async fn wait_until_ready(&mut self, part: &str) -> std::io::Result<()> {
        let start = Instant::now();
        let bucket = self.store("").map_err(std::io::Error::other)?;
        while start.elapsed() < START_LIMIT {
            if let Some(status) = self.process.try_wait()? {
                return Err(std::io::Error::other(format!("{part} ended at once with {status}")));
            }
            // A listing would be tried again for long, and a server that has ended would go unnoticed.
            let listens = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok();
            if listens && bucket.list("").await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        Err(std::io::Error::other(format!("{part} was not ready after {} s", START_LIMIT.as_secs())))
    }

    /// Settings that reach this server, for [`Store::open_with`] or as the environment of another process.
    pub fn settings(&self) -> Vec<(String, String)> {
        settings(&format!("http://127.0.0.1:{}", self.port))
    }

    /// A store under `prefix` of this server's bucket.
    pub fn store(&self, prefix: &str) -> Result<Store, StoreError> {
        Store::open_with(&format!("s3://{}/{prefix}", self.bucket), &self.settings())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `AWS_*` settings for the server at `endpoint` with the keys that the test servers use.
pub fn settings(endpoint: &str) -> Vec<(String, String)> {
    [("AWS_ENDPOINT_URL", endpoint), ("AWS_ACCESS_KEY_ID", "ak"), ("AWS_SECRET_ACCESS_KEY", "sk")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
}

/// Different free ports: all are held at once before any is let go.
pub(super) fn free_ports(num_ports: usize) -> std::io::Result<Vec<u16>> {
    let held: Vec<_> =
        (0..num_ports).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<std::io::Result<_>>()?;
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}
