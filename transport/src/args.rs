//! What the command line says of protection, the same for all programs.

use std::path::PathBuf;

use clap::Args;

/// For whoever accepts connections.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Protection")]
pub struct ServerArgs {
    /// The server's certificate and those above it, in PEM; read again when it changes
    #[arg(long, env = "POLO_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, env = "POLO_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Who signs the certificates of workers (with the DNS name worker.polo) and operators (operator.polo), in PEM
    #[arg(long, env = "POLO_CLIENT_CA", value_name = "FILE", requires = "tls_cert")]
    pub client_ca: Option<PathBuf>,
    /// The token that workers show in place of a certificate; read again each time
    #[arg(long, env = "POLO_WORKER_TOKEN_FILE", value_name = "FILE", requires = "operator_token_file")]
    pub worker_token_file: Option<PathBuf>,
    /// The token that people show in place of a certificate
    #[arg(long, env = "POLO_OPERATOR_TOKEN_FILE", value_name = "FILE", requires = "worker_token_file")]
    pub operator_token_file: Option<PathBuf>,
    /// Serves an address that others can reach although they could read and steer the run
    #[arg(long, env = "POLO_INSECURE")]
    pub insecure: bool,
}

/// For whoever makes connections.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Protection")]
pub struct ClientArgs {
    /// Who signs the coordinator's certificate, in PEM [default: whom this machine trusts]
    #[arg(long, env = "POLO_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// The certificate to show, in PEM; read again for each connection
    #[arg(long, env = "POLO_CERT", value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, env = "POLO_KEY", value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// The token to show; read again for each connection
    #[arg(long, env = "POLO_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Sends a token although others on the way can read it
    #[arg(long, env = "POLO_INSECURE")]
    pub insecure: bool,
}

/// For programs that meet as equals: one of them accepts the connections of the others.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Protection")]
pub struct PeerArgs {
    /// The certificate of whoever listens and those above it, in PEM; read again when it changes
    #[arg(long, env = "POLO_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, env = "POLO_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Who signs the certificates of those who join (with the DNS name worker.polo), in PEM
    #[arg(long, env = "POLO_CLIENT_CA", value_name = "FILE", requires = "tls_cert")]
    pub client_ca: Option<PathBuf>,
    /// Who signs the certificate of whoever listens, in PEM [default: whom this machine trusts]
    #[arg(long, env = "POLO_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// The certificate to show when joining, in PEM
    #[arg(long, env = "POLO_CERT", value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, env = "POLO_KEY", value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// The token that all of them have, in place of certificates of those who join
    #[arg(long, env = "POLO_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Goes without protection on addresses that others can reach
    #[arg(long, env = "POLO_INSECURE")]
    pub insecure: bool,
}

impl PeerArgs {
    /// For the one who listens: the others have the role of workers.
    pub fn as_server(&self) -> ServerArgs {
        ServerArgs {
            tls_cert: self.tls_cert.clone(),
            tls_key: self.tls_key.clone(),
            client_ca: self.client_ca.clone(),
            worker_token_file: self.token_file.clone(),
            operator_token_file: None,
            insecure: self.insecure,
        }
    }

    /// For those who join.
    pub fn as_client(&self) -> ClientArgs {
        ClientArgs {
            ca: self.ca.clone(),
            cert: self.cert.clone(),
            key: self.key.clone(),
            token_file: self.token_file.clone(),
            insecure: self.insecure,
        }
    }
}
