//! Connections to a coordinator, encrypted if its address says so.

use std::{io, pin::Pin, sync::Arc};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    transport::{Channel, Endpoint, Error, Uri},
};
use tower::{Service, service_fn};

use crate::{
    ClientArgs, TransportError,
    certificates::{Identity, authorities, native_authorities, provider},
    token,
};

/// How this process makes connections.
#[derive(Debug, Clone, Default)]
pub struct Client {
    args: ClientArgs,
}

/// What is shown with every request.
#[derive(Debug, Clone, Default)]
pub struct Credentials(Option<MetadataValue<Ascii>>);

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(authorization) = &self.0 {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        Ok(request)
    }
}

type Dialing = Pin<Box<dyn Future<Output = io::Result<TokioIo<Box<dyn Stream>>>> + Send>>;

/// What tonic makes connections with.
trait Connector:
    Service<Uri, Response = TokioIo<Box<dyn Stream>>, Error = io::Error, Future = Dialing> + Send + 'static
{
}

impl<C> Connector for C where
    C: Service<Uri, Response = TokioIo<Box<dyn Stream>>, Error = io::Error, Future = Dialing> + Send + 'static
{
}

/// Either kind of stream.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Client {
    /// As the options say.
    pub fn new(args: ClientArgs) -> Self {
        Self { args }
    }

    /// Where `url` leads, which may lack its scheme, and what to show there. Files are read now.
    pub fn prepare(&self, url: &str) -> Result<(Endpoint, Credentials), TransportError> {
        let url = with_scheme(url);
        let bad = |problem: String| TransportError::Address { url: url.clone(), problem };
        let uri: Uri = url.parse().map_err(|e: tonic::codegen::http::uri::InvalidUri| bad(e.to_string()))?;
        let scheme = uri.scheme_str().unwrap_or_default();
        if !["http", "https"].contains(&scheme) {
            return Err(bad(format!("nothing is known of {scheme}://")));
        }
        let host = uri.host().ok_or_else(|| bad("there is no host".into()))?;
        let is_readable_by_others = scheme == "http" && !is_this_machine(host);
        if is_readable_by_others && self.args.token_file.is_some() && !self.args.insecure {
            return Err(TransportError::ExposedToken { url });
        }
        // Its files are looked at now, so that what is wrong with them is an error of its own, not of the connection.
        if scheme == "https" {
            self.tls()?;
        }
        Ok((Endpoint::from(uri), self.credentials()?))
    }

    /// Connects to where an endpoint of [`Client::prepare`] leads.
    pub async fn connect(&self, endpoint: Endpoint) -> Result<Channel, Error> {
        endpoint.connect_with_connector(self.connector()).await
    }

    /// As [`Client::connect`], when it is first used, and again whenever it has to be.
    pub fn connect_when_used(&self, endpoint: &Endpoint) -> Channel {
        endpoint.connect_with_connector_lazy(self.connector())
    }

    fn connector(&self) -> impl Connector {
        let client = self.clone();
        service_fn(move |uri: Uri| {
            let client = client.clone();
            Box::pin(async move { client.dial(uri).await.map(TokioIo::new) }) as Dialing
        })
    }

    /// As [`Client::connect`], over a stream that leads there already: one connection is all there is.
    pub async fn connect_over<S>(&self, endpoint: Endpoint, stream: S) -> Result<Channel, Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (client, mut stream) = (self.clone(), Some(stream));
        let connector = service_fn(move |uri: Uri| {
            let (client, stream) = (client.clone(), stream.take());
            async move {
                let stream = stream.ok_or(io::ErrorKind::NotConnected)?;
                client.protect(&uri, stream).await.map(TokioIo::new)
            }
        });
        endpoint.connect_with_connector(connector).await
    }

    async fn dial(&self, uri: Uri) -> io::Result<Box<dyn Stream>> {
        let port = uri.port_u16().unwrap_or(if is_encrypted(&uri) { 443 } else { 80 });
        let stream = TcpStream::connect((host(&uri), port)).await?;
        stream.set_nodelay(true)?;
        self.protect(&uri, stream).await
    }

    async fn protect<S>(&self, uri: &Uri, stream: S) -> io::Result<Box<dyn Stream>>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        if !is_encrypted(uri) {
            return Ok(Box::new(stream));
        }
        let name = ServerName::try_from(host(uri).to_owned()).map_err(io::Error::other)?;
        let config = self.tls().map_err(io::Error::other)?;
        Ok(Box::new(TlsConnector::from(config).connect(name, stream).await?))
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, TransportError> {
        let roots = self.args.ca.as_deref().map(authorities).transpose()?.unwrap_or_else(native_authorities);
        let shown = self.args.cert.clone().or(self.args.ca.clone()).unwrap_or_default();
        let failed = |e: rustls::Error| TransportError::Tls { path: shown, problem: e.to_string() };
        let builder = ClientConfig::builder_with_provider(provider());
        let builder = builder.with_safe_default_protocol_versions();
        let mut config = match (&self.args.cert, &self.args.key) {
            (Some(cert), Some(key)) => {
                let Identity { chain, key } = Identity::read(cert, key)?;
                let with_key = |b: rustls::ConfigBuilder<ClientConfig, _>| {
                    b.with_root_certificates(roots).with_client_auth_cert(chain, key)
                };
                builder.and_then(with_key).map_err(failed)?
            }
            _ => builder.map_err(failed)?.with_root_certificates(roots).with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    fn credentials(&self) -> Result<Credentials, TransportError> {
        let Some(path) = &self.args.token_file else { return Ok(Credentials::default()) };
        let shown = format!("Bearer {}", token::read(path)?).parse::<MetadataValue<Ascii>>();
        let mut shown = shown.map_err(|_| TransportError::OddToken { path: path.clone() })?;
        shown.set_sensitive(true);
        Ok(Credentials(Some(shown)))
    }
}

/// An address as it may be written, `HOST:PORT`, as a URL.
pub fn with_scheme(address: &str) -> String {
    if address.contains("://") { address.into() } else { format!("http://{address}") }
}

fn is_encrypted(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}

fn host(uri: &Uri) -> &str {
    uri.host().unwrap_or_default().trim_matches(['[', ']'])
}

fn is_this_machine(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}
