//! A real S3 server: SeaweedFS on free ports, gone when dropped.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Store, StoreError};

const START_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// Flags of `weed mini` that set a port; the gRPC ones must be given too, or they are guessed from the others.
const PORT_FLAGS: [&str; 10] = [
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "admin.port",
    "admin.port.grpc",
];

/// A running SeaweedFS with one bucket. Killed, and its data removed, on drop.
#[derive(Debug)]
pub struct SeaweedFs {
    server: Child,
    port: u16,
    bucket: String,
    _folder: tempfile::TempDir,
}

impl SeaweedFs {
    /// The server's binary where `scripts/setup seaweedfs` puts it.
    pub fn default_binary() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../third_party/seaweedfs/weed")
    }

    /// Starts `binary` with one bucket and waits until it answers, for 30 s at most.
    pub async fn start(binary: &Path, bucket: &str) -> std::io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let ports = free_ports(PORT_FLAGS.len())?;
        let server = command(binary, bucket, folder.path(), &ports)?.spawn().map_err(|e| {
            let hint = "run scripts/setup seaweedfs first";
            std::io::Error::new(e.kind(), format!("cannot start {}: {e}; {hint}", binary.display()))
        })?;
        let mut started = Self { server, port: ports[0], bucket: bucket.to_owned(), _folder: folder };
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
        let mut last = "no connection".to_owned();
        while start.elapsed() < START_LIMIT {
            if let Some(status) = self.server.try_wait()? {
                return Err(std::io::Error::other(format!("seaweedfs ended at once with {status}")));
            }
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                match self.store("").map_err(std::io::Error::other)?.list("").await {
                    Ok(_) => return Ok(()),
                    Err(e) => last = e.to_string(),
                }
            }
            tokio::time::sleep(POLL).await;
        }
        Err(std::io::Error::other(format!("seaweedfs was not ready after {} s: {last}", START_LIMIT.as_secs())))
    }
}

impl Drop for SeaweedFs {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// `AWS_*` settings for the server at `endpoint` with the keys that [`SeaweedFs`] uses.
pub fn settings(endpoint: &str) -> Vec<(String, String)> {
    [("AWS_ENDPOINT_URL", endpoint), ("AWS_ACCESS_KEY_ID", "ak"), ("AWS_SECRET_ACCESS_KEY", "sk")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
}

fn command(binary: &Path, bucket: &str, folder: &Path, ports: &[u16]) -> std::io::Result<Command> {
    let mut command = Command::new(binary);
    command.arg("mini").arg(format!("-dir={}", folder.display())).arg(format!("-bucket={bucket}"));
    command.args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-webdav=false", "-admin.ui=false"]);
    command.args(["-master.telemetry=false", "-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]);
    command.args(PORT_FLAGS.iter().zip(ports).map(|(flag, port)| format!("-{flag}={port}")));
    command.envs(settings("")).env_remove("AWS_ENDPOINT_URL").current_dir(folder);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command)
}

/// Different free ports: all are held at once before any is let go.
fn free_ports(num_ports: usize) -> std::io::Result<Vec<u16>> {
    let held: Vec<_> =
        (0..num_ports).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<std::io::Result<_>>()?;
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}
