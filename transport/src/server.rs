//! Connections that come in, encrypted if the options say so, each with what its other end has proved.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use rustls::{ServerConfig, server::WebPkiClientVerifier};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::{
    Role, ServerArgs, TransportError,
    certificates::{Identity, authorities, provider, role},
};

/// How long a handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Handshakes at a time: strangers who say nothing keep others out for no longer than the limit above.
const MAX_HANDSHAKES: usize = 1024;
/// After the system refused a connection (too many open files), before the next is tried.
const PAUSE: Duration = Duration::from_millis(100);

/// The certificates that a server shows and asks for, made anew when their files change.
#[derive(Debug)]
pub struct ServerTls {
    files: Files,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Files {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    /// Whether others may prove themselves in another way.
    allows_tokens: bool,
}

#[derive(Debug)]
struct Current {
    stamps: Vec<Option<SystemTime>>,
    config: Arc<ServerConfig>,
}

impl ServerTls {
    /// As the options say; none if they name no certificate.
    pub fn new(args: &ServerArgs) -> Result<Option<Self>, TransportError> {
        let (Some(cert), Some(key)) = (&args.tls_cert, &args.tls_key) else { return Ok(None) };
        let allows_tokens = args.worker_token_file.is_some();
        let files = Files { cert: cert.clone(), key: key.clone(), client_ca: args.client_ca.clone(), allows_tokens };
        let current = Current { stamps: files.stamps(), config: files.load()? };
        Ok(Some(Self { files, current: Mutex::new(current) }))
    }

    /// What the next connection gets. Files that have changed but cannot be used leave all as it was.
    fn config(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = self.files.stamps();
        if stamps != current.stamps {
            current.stamps = stamps;
            match self.files.load() {
                Ok(config) => current.config = config,
                Err(error) => tracing::error!(%error, "the certificates of before are used on"),
            }
        }
        current.config.clone()
    }
}

impl Files {
    fn stamps(&self) -> Vec<Option<SystemTime>> {
        let stamp = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()].into_iter().flatten().map(|p| stamp(p)).collect()
    }

    fn load(&self) -> Result<Arc<ServerConfig>, TransportError> {
        let failed = |problem: String| TransportError::Tls { path: self.cert.clone(), problem };
        let builder = ServerConfig::builder_with_provider(provider());
        let builder = builder.with_safe_default_protocol_versions().map_err(|e| failed(e.to_string()))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = Arc::new(authorities(path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
                let verifier = if self.allows_tokens { verifier.allow_unauthenticated() } else { verifier };
                builder.with_client_cert_verifier(verifier.build().map_err(|e| failed(e.to_string()))?)
            }
        };
        let Identity { chain, key } = Identity::read(&self.cert, &self.key)?;
        let mut config = builder.with_single_cert(chain, key).map_err(|e| failed(e.to_string()))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Its address.
    pub address: Option<SocketAddr>,
    /// The role of its certificate, if it showed one.
    pub role: Option<Role>,
}

/// A connection that has been accepted.
#[derive(Debug)]
pub struct Connection {
    stream: Kind,
    peer: Peer,
}

#[derive(Debug)]
enum Kind {
    Plain(TcpStream),
    Encrypted(Box<TlsStream<TcpStream>>),
}

/// Accepts connections until nobody listens to them any more. A handshake that fails or hangs costs only itself.
pub fn accept(listener: TcpListener, tls: Option<ServerTls>) -> impl Stream<Item = io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(accept_all(listener, tls.map(Arc::new), sender));
    ReceiverStream::new(receiver)
}

async fn accept_all(listener: TcpListener, tls: Option<Arc<ServerTls>>, sender: mpsc::Sender<io::Result<Connection>>) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let accepted = tokio::select! {
            () = sender.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Without it only the latency is worse.
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls.clone() else {
            let peer = Peer { address: Some(address), role: None };
            let _ = sender.send(Ok(Connection { stream: Kind::Plain(stream), peer })).await;
            continue;
        };
        let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
        let sender = sender.clone();
        tokio::spawn(async move {
            match timeout(HANDSHAKE_LIMIT, TlsAcceptor::from(tls.config()).accept(stream)).await {
                Ok(Ok(stream)) => drop(sender.send(Ok(encrypted(stream, address))).await),
                Ok(Err(error)) => tracing::debug!(%address, %error, "a handshake failed"),
                Err(_) => tracing::debug!(%address, "a handshake took too long"),
            }
            drop(permit);
        });
    }
}

fn encrypted(stream: TlsStream<TcpStream>, address: SocketAddr) -> Connection {
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let peer = Peer { address: Some(address), role: certificates.first().and_then(role) };
    Connection { stream: Kind::Encrypted(Box::new(stream)), peer }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
    }
}

impl From<Peer> for TcpConnectInfo {
    fn from(peer: Peer) -> Self {
        Self { local_addr: None, remote_addr: peer.address }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Kind::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Kind::Encrypted(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Kind::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Kind::Encrypted(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Kind::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Kind::Encrypted(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Kind::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Kind::Encrypted(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
