//! A relay of HTTP/1.1 in front of a real server that does to requests what networks and clouds do to them.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The server is asked, and its answer is lost with the connection.
    LoseAnswer,
    /// The connection ends before the server is asked.
    Reset,
    /// The answer is not the server's, but this status with this name for the error.
    Answer(u16, &'static str),
    /// The body of the answer ends after half of its bytes.
    Truncate,
    /// The server is not asked, and no answer comes for as long as the client waits.
    Stall,
}

/// A change that is made to the head of every request.
pub type Translate = fn(&str) -> String;

#[derive(Debug)]
struct Planned {
    what: &'static str,
    fault: Fault,
}

#[derive(Debug, Default)]
struct State {
    planned: VecDeque<Planned>,
    requests: Vec<String>,
}

/// A running relay. Gone when dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Relays to `upstream` of this host.
    pub async fn start(upstream: u16) -> io::Result<Self> {
        Self::translating(upstream, |head| head.to_owned()).await
    }

    /// Relays to `upstream` of this host, with the head of each request changed.
    pub async fn translating(upstream: u16, translate: Translate) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let state = Arc::<Mutex<State>>::default();
        let shared = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let state = shared.clone();
                // A request that cannot be relayed ends its connection, as it would without a relay.
                tokio::spawn(async move { relay(client, upstream, translate, &state).await });
            }
        });
        Ok(Self { port, state, task })
    }

    /// Where it listens on this host.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Does `fault` to the next `num_requests` requests that begin with `what`, such as `PUT ` or `GET /polo/k`, beside
    /// what is planned already.
    pub fn inject(&self, what: &'static str, fault: Fault, num_requests: usize) {
        lock(&self.state).planned.extend((0..num_requests).map(|_| Planned { what, fault }));
    }

    /// How many requests that begin with `what` there were.
    pub fn num_requests(&self, what: &str) -> usize {
        lock(&self.state).requests.iter().filter(|request| request.starts_with(what)).count()
    }

    /// Whether every planned fault has happened.
    pub fn is_done(&self) -> bool {
        lock(&self.state).planned.is_empty()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn take_up(&mut self, request: &str) -> Option<Fault> {
        self.requests.push(request.to_owned());
        let place = self.planned.iter().position(|planned| request.starts_with(planned.what))?;
        Some(self.planned.remove(place)?.fault)
    }
}

/// One request and its answer; the connection ends with it.
async fn relay(mut client: TcpStream, upstream: u16, translate: Translate, state: &Mutex<State>) -> io::Result<()> {
    let (head, body) = read_request(&mut client).await?;
    let request = head.lines().next().unwrap_or_default();
    let fault = lock(state).take_up(request);
    match fault {
        Some(Fault::Reset) => return reset(&client),
        Some(Fault::Answer(status, code)) => return client.write_all(answer(status, code).as_bytes()).await,
        // Until the client has hung up.
        Some(Fault::Stall) => return client.read(&mut [0]).await.map(drop),
        Some(Fault::LoseAnswer | Fault::Truncate) | None => {}
    }
    let answer = ask(upstream, &translate(&head), &body).await?;
    match fault {
        Some(Fault::LoseAnswer) => reset(&client),
        Some(Fault::Truncate) => {
            let body = answer.len() - head_length(&answer).unwrap_or_default();
            client.write_all(&answer[..answer.len() - body.div_ceil(2)]).await
        }
        _ => client.write_all(&answer).await,
    }
}

/// Ends the connection without the farewell that a closed one sends.
fn reset(client: &TcpStream) -> io::Result<()> {
    client.set_zero_linger()
}

async fn ask(port: u16, head: &str, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    // One request to a connection, so that the answer ends where the connection does.
    server.write_all(format!("{}\r\nconnection: close\r\n\r\n", head.trim_end()).as_bytes()).await?;
    server.write_all(body).await?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer).await?;
    Ok(answer)
}

async fn read_request(client: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let head_length = loop {
        if let Some(length) = head_length(&bytes) {
            break length;
        }
        if client.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8(bytes[..head_length].to_vec()).map_err(io::Error::other)?;
    let mut body = bytes.split_off(head_length);
    let missing = content_length(&head).saturating_sub(body.len() as u64);
    client.take(missing).read_to_end(&mut body).await?;
    Ok((head, body))
}

fn head_length(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

fn content_length(head: &str) -> u64 {
    let values = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = values.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    lengths.next().and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}

/// All three clouds answer so.
fn answer(status: u16, code: &str) -> String {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>injected</Message></Error>");
    let length = body.len();
    format!("HTTP/1.1 {status} Injected\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
}
