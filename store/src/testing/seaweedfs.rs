//! A real S3 server: SeaweedFS on free ports.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::server::{Kind, S3, Server, free_ports, settings, third_party};

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

const KIND: Kind = Kind { part: "seaweedfs", ..S3 };

/// A running SeaweedFS with one bucket. Killed, and its data removed, on drop.
#[derive(Debug)]
pub struct SeaweedFs(Server);

impl SeaweedFs {
    /// The server's binary where `scripts/setup seaweedfs` puts it.
    pub fn default_binary() -> PathBuf {
        third_party("seaweedfs/weed")
    }

    /// Starts `binary` with one bucket and waits until it answers, for 60 s at most.
    pub async fn start(binary: &Path, bucket: &str) -> std::io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let ports = free_ports(PORT_FLAGS.len())?;
        let command = command(binary, bucket, folder.path(), &ports);
        Ok(Self(Server::start(KIND, command, folder, ports[0], bucket).await?))
    }
}

impl Deref for SeaweedFs {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0
    }
}

fn command(binary: &Path, bucket: &str, folder: &Path, ports: &[u16]) -> Command {
    let mut command = Command::new(binary);
    command.arg("mini").arg(format!("-dir={}", folder.display())).arg(format!("-bucket={bucket}"));
    command.args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-webdav=false", "-admin.ui=false"]);
    command.args(["-master.telemetry=false", "-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]);
    command.args(PORT_FLAGS.iter().zip(ports).map(|(flag, port)| format!("-{flag}={port}")));
    command.envs(settings("")).env_remove("AWS_ENDPOINT_URL");
    command
}
