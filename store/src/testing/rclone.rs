//! A real S3 server that ignores the condition of conditional puts: `rclone serve s3`.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::server::{Kind, S3, Server, free_ports, third_party};

const KIND: Kind = Kind { part: "rclone", ..S3 };

/// A running `rclone serve s3` with one bucket. Killed, and its data removed, on drop.
#[derive(Debug)]
pub struct Rclone(Server);

impl Rclone {
    /// The server's binary where `scripts/setup rclone` puts it.
    pub fn default_binary() -> PathBuf {
        third_party("rclone/rclone")
    }

    /// Starts `binary` with one bucket and waits until it answers, for 60 s at most.
    pub async fn start(binary: &Path, bucket: &str) -> std::io::Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join(bucket))?;
        let port = free_ports(1)?[0];
        let command = command(binary, folder.path(), port);
        Ok(Self(Server::start(KIND, command, folder, port, bucket).await?))
    }
}

impl Deref for Rclone {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0
    }
}

fn command(binary: &Path, folder: &Path, port: u16) -> Command {
    let mut command = Command::new(binary);
    // It would refuse keys as short as those of `settings`; without any of its own it takes all.
    command.args(["serve", "s3"]).arg(format!("--addr=127.0.0.1:{port}")).arg(folder);
    // Nobody's own remotes are to be read or changed.
    command.arg("--config=/dev/null");
    command
}
