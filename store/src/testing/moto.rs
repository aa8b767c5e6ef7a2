//! Another real S3 server: moto, which checks no secrets. It stands in for Google's too.

use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::proxy::Proxy;
use super::server::{Kind, S3, Server, free_ports, pairs, third_party};
use crate::{Store, StoreError};

const KIND: Kind = Kind { part: "moto", make_bucket: Some(|bucket| format!("PUT /{bucket}")), ..S3 };

/// A running moto with one bucket. Killed, and its data removed, on drop.
#[derive(Debug)]
pub struct Moto(Server);

impl Moto {
    /// The Python that has moto where `scripts/setup moto` puts it.
    pub fn default_python() -> PathBuf {
        third_party("moto/bin/python")
    }

    /// Starts moto in `python` with one bucket and waits until it answers, for 60 s at most.
    pub async fn start(python: &Path, bucket: &str) -> io::Result<Self> {
        let port = free_ports(1)?[0];
        let mut command = Command::new(python);
        command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]);
        Ok(Self(Server::start(KIND, command, tempfile::tempdir()?, port, bucket).await?))
    }
}

impl Deref for Moto {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0
    }
}

/// Google's XML interface as the library speaks it, which is Amazon's but for the condition of a put and the signature:
/// moto behind a relay that translates these two. No emulator of Google's store that can be had from a package registry
/// takes puts through that interface.
#[derive(Debug)]
pub struct TranslatedGcs {
    moto: Moto,
    relay: Proxy,
}

impl TranslatedGcs {
    /// Starts moto in `python` with one bucket, and the relay.
    pub async fn start(python: &Path, bucket: &str) -> io::Result<Self> {
        let moto = Moto::start(python, bucket).await?;
        let relay = Proxy::translating(moto.port(), to_amazons).await?;
        Ok(Self { moto, relay })
    }

    /// The relay, which takes faults as any other.
    pub fn relay(&self) -> &Proxy {
        &self.relay
    }

    /// A store under `prefix` of this server's bucket.
    pub fn store(&self, prefix: &str) -> Result<Store, StoreError> {
        let endpoint = format!("http://127.0.0.1:{}", self.relay.port());
        let settings = pairs([("GOOGLE_BASE_URL", &endpoint), ("GOOGLE_BEARER_TOKEN", "any")]);
        Store::open_with(&format!("gs://{}/{prefix}", self.moto.bucket()), &settings)
    }
}

fn to_amazons(head: &str) -> String {
    let signature =
        "AWS4-HMAC-SHA256 Credential=ak/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
    head.replace("x-goog-if-generation-match: 0", "if-none-match: *").replace("Bearer any", signature)
}
