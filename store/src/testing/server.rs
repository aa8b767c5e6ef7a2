//! A real object store as a child process, gone when dropped.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{Store, StoreError};

const START_LIMIT: Duration = Duration::from_secs(60);
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// A kind of server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    /// What `scripts/setup` calls it.
    pub part: &'static str,
    /// Of the addresses that it is reached by.
    pub scheme: &'static str,
    /// Settings that reach the server at an endpoint.
    pub settings: fn(&str) -> Vec<(String, String)>,
    /// The request line that makes a bucket, for servers that start without one.
    pub make_bucket: Option<fn(&str) -> String>,
}

/// Amazon's interface, with the bucket there from the start.
pub(super) const S3: Kind = Kind { part: "", scheme: "s3", settings, make_bucket: None };

/// A running server with one bucket. Killed, and its data removed, on drop.
#[derive(Debug)]
pub struct Server {
    process: Child,
    kind: Kind,
    port: u16,
    bucket: String,
    _folder: TempDir,
}

impl Server {
    /// Starts `command`, which serves from `folder` at `port` of this host, and waits until `bucket` is there, for 60 s
    /// at most.
    pub(super) async fn start(
        kind: Kind,
        mut command: Command,
        folder: TempDir,
        port: u16,
        bucket: &str,
    ) -> io::Result<Self> {
        command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().map_err(|e| {
            let program = Path::new(command.get_program()).display();
            io::Error::new(e.kind(), format!("cannot start {program}: {e}; run scripts/setup {} first", kind.part))
        })?;
        let mut started = Self { process, kind, port, bucket: bucket.to_owned(), _folder: folder };
        started.wait_until_ready().await?;
        Ok(started)
    }

    async fn wait_until_ready(&mut self) -> io::Result<()> {
        let (start, part) = (Instant::now(), self.kind.part);
        let bucket = self.store("").map_err(io::Error::other)?;
        while start.elapsed() < START_LIMIT {
            if let Some(status) = self.process.try_wait()? {
                return Err(io::Error::other(format!("{part} ended at once with {status}")));
            }
            // A listing would be tried again for long, and a server that has ended would go unnoticed.
            if self.listens() && self.make_bucket().is_ok() && bucket.list("").await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        Err(io::Error::other(format!("{part} was not ready after {} s", START_LIMIT.as_secs())))
    }

    fn listens(&self) -> bool {
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
    }

    /// Fine when it is there already.
    fn make_bucket(&self) -> io::Result<()> {
        let Some(request) = self.kind.make_bucket else { return Ok(()) };
        let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        server.set_read_timeout(Some(ANSWER_LIMIT))?;
        let line = request(&self.bucket);
        write!(server, "{line} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        server.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        if ["200", "201", "409"].contains(&status) { Ok(()) } else { Err(io::Error::other(answer)) }
    }

    /// Settings that reach this server, for [`Store::open_with`] or as the environment of another process.
    pub fn settings(&self) -> Vec<(String, String)> {
        self.settings_through(self.port)
    }

    /// Settings that reach this server through a relay at `port` of this host.
    pub fn settings_through(&self, port: u16) -> Vec<(String, String)> {
        (self.kind.settings)(&format!("http://127.0.0.1:{port}"))
    }

    /// The bucket's name.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Where it listens on this host.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A store under `prefix` of this server's bucket.
    pub fn store(&self, prefix: &str) -> Result<Store, StoreError> {
        Store::open_with(&self.url(prefix), &self.settings())
    }

    /// As [`Server::store`], through a relay at `port` of this host.
    pub fn store_through(&self, port: u16, prefix: &str) -> Result<Store, StoreError> {
        Store::open_with(&self.url(prefix), &self.settings_through(port))
    }

    fn url(&self, prefix: &str) -> String {
        format!("{}://{}/{prefix}", self.kind.scheme, self.bucket)
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
    pairs([("AWS_ENDPOINT_URL", endpoint), ("AWS_ACCESS_KEY_ID", "ak"), ("AWS_SECRET_ACCESS_KEY", "sk")])
}

pub(super) fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
}

/// Different free ports: all are held at once before any is let go.
pub(super) fn free_ports(num_ports: usize) -> io::Result<Vec<u16>> {
    let held: Vec<_> =
        (0..num_ports).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<io::Result<_>>()?;
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// Where `scripts/setup` puts `file` of a part.
pub(super) fn third_party(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../third_party").join(file)
}
