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
