//! Azure's blob store as its makers emulate it: Azurite.

use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::server::{Kind, Server, free_ports, pairs, third_party};

const KIND: Kind = Kind { part: "azurite", scheme: "az", settings, make_bucket: Some(make_container) };

/// The account that every Azurite has, and its published key.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Leave to create containers until 2099, signed with that key.
const MAY_CREATE: &str =
    "sv=2018-03-28&ss=b&srt=c&sp=c&se=2099-01-01T00:00:00Z&sig=fUYROKJysnxJJZl9Cr14mBOMIf84X49vz0xEQnYrgBU%3D";

/// A running Azurite with one container. Killed, and its data removed, on drop.
#[derive(Debug)]
pub struct Azurite(Server);

impl Azurite {
    /// The server's program where `scripts/setup azurite` puts it.
    pub fn default_binary() -> PathBuf {
        third_party("azurite/node_modules/.bin/azurite-blob")
    }

    /// Starts `binary` with one container and waits until it answers, for 60 s at most.
    pub async fn start(binary: &Path, container: &str) -> io::Result<Self> {
        let port = free_ports(1)?[0];
        let mut command = Command::new(binary);
        command.args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()]);
        command.args(["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]);
        Ok(Self(Server::start(KIND, command, tempfile::tempdir()?, port, container).await?))
    }
}

impl Deref for Azurite {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0
    }
}

fn settings(endpoint: &str) -> Vec<(String, String)> {
    pairs([
        ("AZURE_STORAGE_ENDPOINT", &format!("{endpoint}/{ACCOUNT}")),
        ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT),
        ("AZURE_STORAGE_ACCOUNT_KEY", KEY),
    ])
}

fn make_container(container: &str) -> String {
    format!("PUT /{ACCOUNT}/{container}?restype=container&{MAY_CREATE}")
}
