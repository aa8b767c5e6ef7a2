//! gRPC and liveness probes over the simulated network.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::{BoxFuture, FutureExt};
use hyper_util::rt::TokioIo;
use polo_coordinator::{Outside, machine::Alive};
use polo_worker::agent::Connect;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tonic::transport::{
    Channel, Endpoint, Error,
    server::{Connected, TcpConnectInfo},
};
use turmoil::net::{TcpListener, TcpStream};

/// A live worker leaves a silent connection open for longer than this.
const PROBE_PATIENCE: Duration = Duration::from_millis(150);

/// An accepted connection.
pub struct Accepted(TcpStream);

impl Connected for Accepted {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        TcpConnectInfo { local_addr: self.0.local_addr().ok(), remote_addr: self.0.peer_addr().ok() }
    }
}

impl AsyncRead for Accepted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The connections that come to a listener.
pub fn incoming(listener: TcpListener) -> impl futures::Stream<Item = io::Result<Accepted>> + Send + 'static {
    futures::stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| Accepted(stream));
        Some((accepted, listener))
    })
}

async fn channel(endpoint: Endpoint) -> Result<Channel, Error> {
    let call = |uri: tonic::transport::Uri| async move {
        let address = uri.authority().map(ToString::to_string).unwrap_or_default();
        TcpStream::connect(address).await.map(TokioIo::new)
    };
    endpoint.connect_with_connector(tower::service_fn(call)).await
}

/// How a simulated worker's agent connects.
pub fn connect() -> Connect {
    Box::new(|endpoint| channel(endpoint).boxed())
}

/// The simulated coordinator's way to others.
pub struct SimOutside;

impl Outside for SimOutside {
    fn probe<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Alive> {
        async move {
            let is_dropped =
                async { Ok::<_, io::Error>(TcpStream::connect(address).await?.read(&mut [0]).await? == 0) };
            match tokio::time::timeout(PROBE_PATIENCE, is_dropped).await {
                Ok(Ok(true) | Err(_)) => Alive::No,
                Ok(Ok(false)) | Err(_) => Alive::Yes,
            }
        }
        .boxed()
    }

    fn connect<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, Result<Channel, Error>> {
        channel(endpoint.clone()).boxed()
    }
}
