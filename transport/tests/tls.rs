//! Servers and clients over real sockets: who is let in, and as whom.
#![allow(missing_docs)]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use polo_transport::{
    Client, ClientArgs, Peer, Role, ServerArgs, ServerTls, TransportError, accept,
    testing::{Authority, Issued},
};
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tonic::transport::{Server, server::Connected};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// A health service that remembers who connected.
struct Served {
    address: SocketAddr,
    peers: Arc<Mutex<Vec<Peer>>>,
}

impl Served {
    async fn start(args: &ServerArgs) -> Self {
        let tls = ServerTls::new(args).expect("certificates");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        let peers = Arc::new(Mutex::new(Vec::new()));
        let seen = peers.clone();
        let incoming = accept(listener, tls).map(move |accepted| {
            accepted.inspect(|connection| seen.lock().expect("whole").push(connection.connect_info()))
        });
        let (_, health) = tonic_health::server::health_reporter();
        tokio::spawn(Server::builder().add_service(health).serve_with_incoming(incoming));
        Self { address, peers }
    }

    /// Asks for its health, and returns as whom; the error says why not.
    async fn ask(&self, args: ClientArgs) -> Result<Option<Role>, String> {
        let client = Client::new(args);
        let (endpoint, credentials) =
            client.prepare(&format!("https://localhost:{}", self.address.port())).map_err(|e| e.to_string())?;
        let channel = client.connect(endpoint).await.map_err(|e| format!("{e:?}"))?;
        let mut health = HealthClient::with_interceptor(channel, credentials);
        let request = HealthCheckRequest { service: String::new() };
        health.check(request).await.map_err(|e| format!("{e:?}"))?;
        Ok(self.peers.lock().expect("whole").last().and_then(|peer| peer.role))
    }
}

struct World {
    folder: tempfile::TempDir,
    authority: Authority,
    server: Issued,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let authority = Authority::new(folder.path(), "ca");
        let server = authority.issue("server", &["localhost"]);
        Self { folder, authority, server }
    }

    fn server_args(&self) -> ServerArgs {
        let Issued { cert, key } = self.server.clone();
        ServerArgs { tls_cert: Some(cert), tls_key: Some(key), ..Default::default() }
    }

    fn mutual(&self) -> ServerArgs {
        ServerArgs { client_ca: Some(self.authority.cert()), ..self.server_args() }
    }

    fn showing(&self, issued: Issued) -> ClientArgs {
        ClientArgs {
            ca: Some(self.authority.cert()),
            cert: Some(issued.cert),
            key: Some(issued.key),
            ..Default::default()
        }
    }

    fn stranger(&self) -> ClientArgs {
        ClientArgs { ca: Some(self.authority.cert()), ..Default::default() }
    }

    fn write(&self, name: &str, text: &str) -> std::path::PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    }
}

#[tokio::test]
async fn certificates_have_the_role_that_their_name_says() {
    let world = World::new();
    let served = Served::start(&world.mutual()).await;
    let show = |file: &str, names: &[&str]| world.showing(world.authority.issue(file, names));
    assert_eq!(served.ask(show("worker", &["worker.polo"])).await, Ok(Some(Role::Worker)));
    assert_eq!(served.ask(show("operator", &["someone", "operator.polo"])).await, Ok(Some(Role::Operator)));
    assert_eq!(served.ask(show("neither", &["someone.polo"])).await, Ok(None));
}

#[tokio::test]
async fn who_shows_no_certificate_or_another_authoritys_is_kept_out() {
    let world = World::new();
    let served = Served::start(&world.mutual()).await;
    assert!(served.ask(world.stranger()).await.is_err());
    let other = Authority::new(world.folder.path(), "other");
    assert!(served.ask(world.showing(other.issue("forged", &["operator.polo"]))).await.is_err());
    assert!(served.peers.lock().expect("whole").iter().all(|peer| peer.role.is_none()));
}

#[tokio::test]
async fn where_tokens_count_too_a_certificate_may_be_missing() {
    let world = World::new();
    let [worker, operator] = ["worker-token", "operator-token"].map(|name| world.write(name, &format!("{name:-<32}")));
    let args = ServerArgs { worker_token_file: Some(worker), operator_token_file: Some(operator), ..world.mutual() };
    assert_eq!(Served::start(&args).await.ask(world.stranger()).await, Ok(None));
}

#[tokio::test]
async fn a_server_that_the_authority_does_not_vouch_for_is_not_talked_to() {
    let world = World::new();
    let served = Served::start(&world.server_args()).await;
    assert_eq!(served.ask(world.stranger()).await, Ok(None));
    let other = Authority::new(world.folder.path(), "other");
    let error = served.ask(ClientArgs { ca: Some(other.cert()), ..Default::default() }).await.expect_err("unknown");
    assert!(error.contains("UnknownIssuer"), "{error}");
    let elsewhere = world.authority.issue("elsewhere", &["another.host"]);
    let args = ServerArgs { tls_cert: Some(elsewhere.cert), tls_key: Some(elsewhere.key), ..Default::default() };
    let error = Served::start(&args).await.ask(world.stranger()).await.expect_err("another name");
    assert!(error.contains("NotValidForName"), "{error}");
}

#[tokio::test]
async fn new_certificates_count_from_the_next_connection_on() {
    let world = World::new();
    let served = Served::start(&world.server_args()).await;
    let next = Authority::new(world.folder.path(), "next");
    let trusts_next = ClientArgs { ca: Some(next.cert()), ..Default::default() };
    assert!(served.ask(trusts_next.clone()).await.is_err());
    replace(&world.server, &next.issue("renewed", &["localhost"]));
    assert_eq!(served.ask(trusts_next.clone()).await, Ok(None));
    // Half of a renewal does not stop the server.
    std::fs::write(&world.server.cert, "not yet").expect("written");
    assert_eq!(served.ask(trusts_next).await, Ok(None));
}

/// As a renewal does it: the files get other contents, and the time of their change is another.
fn replace(old: &Issued, new: &Issued) {
    for (old, new) in [(&old.key, &new.key), (&old.cert, &new.cert)] {
        std::fs::rename(new, old).expect("renamed");
        let file = std::fs::File::options().write(true).open(old).expect("opened");
        file.set_modified(std::time::UNIX_EPOCH).expect("set");
    }
}

#[test]
fn files_that_do_not_fit_are_named() {
    let world = World::new();
    let error = |args: &ServerArgs| ServerTls::new(args).expect_err("refused").to_string();
    let missing = ServerArgs { tls_key: Some("/nowhere/key".into()), ..world.server_args() };
    assert!(error(&missing).starts_with("cannot read /nowhere/key: "));
    let swapped = ServerArgs { tls_cert: Some(world.server.key.clone()), ..world.server_args() };
    assert!(error(&swapped).contains("there is none; it has to be a PEM file with certificates"));
    let others = world.authority.issue("other", &["localhost"]).key;
    let mismatched = error(&ServerArgs { tls_key: Some(others), ..world.server_args() });
    assert!(mismatched.contains("cannot be used"), "{mismatched}");
}

#[test]
fn a_token_goes_nowhere_where_others_can_read_it() {
    let world = World::new();
    let token_file = Some(world.write("token", "a-token-nobody-guesses\n"));
    let prepare = |url: &str, insecure| {
        Client::new(ClientArgs { token_file: token_file.clone(), insecure, ..Default::default() })
            .prepare(url)
            .map(drop)
    };
    assert!(matches!(prepare("http://coordinator:7070", false), Err(TransportError::ExposedToken { .. })));
    assert!(prepare("http://coordinator:7070", true).is_ok());
    for url in ["http://127.0.0.1:7070", "localhost:7070", "http://[::1]:7070", "https://coordinator:7070"] {
        assert!(prepare(url, false).is_ok(), "{url}");
    }
}

#[test]
fn a_token_that_cannot_be_sent_is_refused_without_being_shown() {
    let world = World::new();
    let token_file = Some(world.write("token", "a-token-with-a-line\u{7}-in-it"));
    let client = Client::new(ClientArgs { token_file, ..Default::default() });
    let error = client.prepare("http://127.0.0.1:7070").map(drop).expect_err("refused");
    assert!(matches!(error, TransportError::OddToken { .. }) && !error.to_string().contains("a-token"), "{error}");
}

#[test]
fn addresses_that_make_no_sense_say_what_would() {
    let error = |url: &str| Client::default().prepare(url).map(drop).expect_err(url).to_string();
    for url in ["ftp://host", "http://", "http://a b"] {
        assert!(error(url).contains("it looks like http://HOST:7070"), "{url}");
    }
}
