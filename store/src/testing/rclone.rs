//! A real S3 server that ignores the condition of conditional puts: `rclone serve s3` on a free port, gone when dropped.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::settings;
use crate::{Store, StoreError};

const START_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// A running `rclone serve s3` with one bucket. Killed, and its data removed, on drop.
#[derive(Debug)]
pub struct Rclone {
    server: Child,
    port: u16,
    bucket: String,
    _folder: tempfile::TempDir,
}

impl Rclone {
    /// The server's binary where `scripts/setup rclone` puts it.
    pub fn default_binary() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../third_party/rclone/rclone")
    }

    /// Starts `binary` with one bucket and waits until it answers, for 30 s at most.
    pub async fn start(binary: &Path, bucket: &str) -> std::io::Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join(bucket))?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let server = command(binary, folder.path(), port).spawn().map_err(|e| {
            let hint = "run scripts/setup rclone first";
            std::io::Error::new(e.kind(), format!("cannot start {}: {e}; {hint}", binary.display()))
        })?;
        let mut started = Self { server, port, bucket: bucket.to_owned(), _folder: folder };
        started.wait_until_ready().await?;
        Ok(started)
    }

    /// Settings that reach this server, for [`Store::open_with`] or as the environment of another process.
    pub fn settings(&self) -> Vec<(String, String)> {
        settings(&format!("http://127.0.0.1:{}", self.port))
    }

    /// A store under `prefix` of this server's bucket.
    pub fn store(&self, prefix: &str) -> Result<Store, StoreError> {
        Store::open_with(&format!("s3://{}/{prefix}", self.bucket), &self.settings())
    }

    async fn wait_until_ready(&mut self) -> std::io::Result<()> {
        let start = Instant::now();
        while start.elapsed() < START_LIMIT {
            if let Some(status) = self.server.try_wait()? {
                return Err(std::io::Error::other(format!("rclone ended at once with {status}")));
            }
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        Err(std::io::Error::other(format!("rclone was not ready after {} s", START_LIMIT.as_secs())))
    }
}

impl Drop for Rclone {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn command(binary: &Path, folder: &Path, port: u16) -> Command {
    let mut command = Command::new(binary);
    // It would refuse keys as short as those of `settings`; without any of its own it takes all.
    command.args(["serve", "s3"]).arg(format!("--addr=127.0.0.1:{port}")).arg(folder);
    // Nobody's own remotes are to be read or changed.
    command.arg("--config=/dev/null").current_dir(folder);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}
