//! How Polo's processes reach each other: who may speak, and how what is said stays between them.
//!
//! Both ends of the control plane use it: the coordinator accepts connections ([`accept`]) and admits requests
//! ([`Guard`]), workers and people connect ([`Client`]). Certificates and tokens are files that are read again when they
//! have changed. It must never write a token or a key anywhere, errors and logs included. Start reading at [`Guard`].

mod admission;
mod args;
mod certificates;
mod client;
mod guard;
mod server;
#[cfg(feature = "testing")]
pub mod testing;
mod token;

use std::{io, net::SocketAddr, path::PathBuf};

pub use self::{
    admission::guarded,
    args::{ClientArgs, PeerArgs, ServerArgs},
    client::{Client, Credentials, with_scheme},
    guard::{Guard, Need, Refusal, Role},
    server::{Connection, Peer, ServerTls, accept},
};

/// What can be wrong with how a connection is to be made safe.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}; check the path and its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A file has no certificate, or no key, that can be used.
    #[error("{}: {problem}; it has to be a PEM file with {needed}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What it should hold.
        needed: &'static str,
    },
    /// Certificates and keys that do not go together.
    #[error("certificate {} cannot be used: {problem}", path.display())]
    Tls {
        /// The certificate's file.
        path: PathBuf,
        /// The library's words.
        problem: String,
    },
    /// A token that others could guess.
    #[error("the token in {} has {num_bytes} bytes; it needs at least {least}: `openssl rand -hex 32` makes a good one", path.display())]
    ShortToken {
        /// The file.
        path: PathBuf,
        /// Its length.
        num_bytes: usize,
        /// The least length.
        least: usize,
    },
    /// A token that cannot be sent.
    #[error("the token in {} has other characters than letters, digits and signs; `openssl rand -hex 32` makes a good one", path.display())]
    OddToken {
        /// The file.
        path: PathBuf,
    },
    /// The same token for both roles.
    #[error("{} and {} hold the same token; a worker's must not be an operator's", worker.display(), operator.display())]
    SameToken {
        /// The workers' token file.
        worker: PathBuf,
        /// The operators' token file.
        operator: PathBuf,
    },
    /// An address that others can reach, without protection.
    #[error(
        "{address} can be reached by others, and {missing}; give {remedy}, listen on 127.0.0.1, or pass --insecure if everyone on that network may read and steer the run"
    )]
    Exposed {
        /// Where it would listen.
        address: SocketAddr,
        /// What is missing.
        missing: &'static str,
        /// Options that would do.
        remedy: &'static str,
    },
    /// A token would be sent for everyone to read.
    #[error(
        "the token would go to {url} unencrypted; use https://, or pass --insecure if everyone on that network may know it"
    )]
    ExposedToken {
        /// Where to.
        url: String,
    },
    /// An address that makes no sense.
    #[error("{url:?} is no address to connect to: {problem}; it looks like http://HOST:7070 or https://HOST:7070")]
    Address {
        /// What was given.
        url: String,
        /// What is wrong.
        problem: String,
    },
}
