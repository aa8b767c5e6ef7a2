//! Three hosts, each in a network namespace with an address of its own, that train over mutual TLS through a SeaweedFS.
//! Needs `ip` (iproute2), `unshare` and `nsenter` (util-linux), and a system that lets its user make namespaces.
#![allow(missing_docs)]

mod support;

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
};

use polo_store::testing::SeaweedFs;
use polo_transport::testing::{Authority, Issued};
use serde_json::Value;
use support::{Running, World, finish, result, talk, worker_program};
use tokio::{io::copy_bidirectional, net::TcpListener, net::TcpStream};

const SWITCH: Ipv4Addr = Ipv4Addr::new(10, 81, 0, 1);
const SET_UP: &str =
    "ip link set lo up && ip link add polo type bridge && ip link set polo up && ip address add 10.81.0.1/16 dev polo";
/// In a host's namespace: a cable to the switch of process $1, then the program in place of the shell.
const PLUG_IN: &str = r#"ip link set lo up && ip link add eth0 type veth peer name "$2" netns "$1" &&
    ip address add "$3/16" dev eth0 && ip link set eth0 up &&
    nsenter --target "$1" --net ip link set "$2" master polo up && shift 3 && exec "$@""#;

/// Long enough for a host to be missed and to come back.
const NUM_STEPS: u64 = 5_000;

#[test]
fn a_host_is_cut_off_and_comes_back_and_the_result_is_that_of_an_undisturbed_run() {
    let mut moved = Command::new("unshare");
    moved.args(["--map-root-user", "--net", "--"]).arg(std::env::current_exe().expect("this program"));
    let output = finish(moved.args(["--exact", "in_a_network_of_its_own", "--ignored", "--nocapture"]));
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{told}{}", talk(&output));
}

/// What is tested, with all that its hosts share.
struct Site {
    world: World,
    authority: Authority,
    worker: Issued,
    operator: Issued,
    server: SeaweedFs,
    /// Where the hosts reach the SeaweedFS, which listens on the loopback device.
    s3_port: u16,
}

impl Site {
    async fn new() -> Self {
        let world = World::new();
        let server = SeaweedFs::start(&SeaweedFs::default_binary(), "bucket").await.expect("SeaweedFS");
        let corpus = server.store("corpus").expect("a store");
        for key in ["manifest.json", "en/0.bin", "en/0.idx", "ne/0.bin", "ne/0.idx"] {
            corpus.put(key, world.read(&format!("corpus/{key}")).into()).await.expect("stored");
        }
        let authority = Authority::new(&world.path(""), "ca");
        let worker = authority.issue("worker", &["worker.polo"]);
        let operator = authority.issue("operator", &["operator.polo"]);
        let s3_port = forward(server.port()).await;
        Self { world, authority, worker, operator, server, s3_port }
    }

    fn sets(&self) -> Vec<String> {
        let places =
            ["corpus.url=s3://bucket/corpus", "run.store=s3://bucket/run", "workers.heartbeat_timeout_ms=2000"];
        places.into_iter().flat_map(|set| ["--set".into(), set.into()]).chain(long()).collect()
    }

    fn coordinator(&self) -> Running {
        let shown = self.authority.issue("server", &["10.81.0.1"]);
        let mut command = self.world.polo(&["coordinator", "recipe.toml", "--workers", "3"]);
        command.args(["--listen", "10.81.0.1:0"]).args(self.sets()).envs(self.server.settings());
        command.arg("--tls-cert").arg(shown.cert).arg("--tls-key").arg(shown.key);
        Running::start(command.arg("--client-ca").arg(self.authority.cert()))
    }

    fn host(&self, number: u8, coordinator: &str) -> Running {
        let ip = Ipv4Addr::new(10, 81, 0, 10 + number).to_string();
        let mut command = Command::new("unshare");
        command.args(["--net", "--", "sh", "-c", PLUG_IN, "sh"]).arg(std::process::id().to_string());
        command.arg(cable(number)).arg(&ip).arg(worker_program()).arg(self.world.path("recipe.toml"));
        command.args(["--id", &format!("host-{number}"), "--listen", &format!("{ip}:0"), "--coordinator", coordinator]);
        command.args(self.sets()).current_dir(self.world.path(""));
        command.arg("--ca").arg(self.authority.cert()).arg("--cert").arg(&self.worker.cert);
        command.arg("--key").arg(&self.worker.key);
        command.envs(self.server.settings()).env("AWS_ENDPOINT_URL", format!("http://{SWITCH}:{}", self.s3_port));
        Running::start(command.env("POLO_CACHE", self.world.path(&format!("cache-{number}"))))
    }

    /// Waits until so many members train, and have come past a step; returns that they have come to.
    fn wait_for(&self, address: &str, num_members: usize, past: u64) -> u64 {
        let mut status = self.world.polo(&["status", "--watch", "--json", "--address", address]);
        status.arg("--ca").arg(self.authority.cert());
        let status = status.arg("--cert").arg(&self.operator.cert).arg("--key").arg(&self.operator.key);
        support::first_on_stdout(status, |line| {
            let status: Value = serde_json::from_str(line).expect("JSON");
            let members = status["members"].as_array().expect("members");
            let num_training = members.iter().filter(|member| member["role"] == "member").count();
            let step = status["step"].as_u64().expect("a step");
            (num_training == num_members && step > past && status["phase"] == "training").then_some(step)
        })
    }
}

/// What the disturbed and the undisturbed run have in common: room for three members, and steps enough.
fn long() -> impl Iterator<Item = String> {
    let steps = format!("stages.0.steps={NUM_STEPS}");
    let sets = ["batch.slots=4".into(), steps, "corpus.allow_repeats=true".into()];
    sets.into_iter().flat_map(|set| ["--set".into(), set])
}

fn cable(host: u8) -> String {
    format!("cable{host}")
}

fn set_cable(host: u8, state: &str) {
    let set = Command::new("ip").args(["link", "set", &cable(host), state]).status().expect("ip starts");
    assert!(set.success(), "{host} {state}");
}

/// A port at the switch for what listens on the loopback device.
async fn forward(to: u16) -> u16 {
    let listener = TcpListener::bind((SWITCH, 0)).await.expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut caller, _)) = listener.accept().await {
            tokio::spawn(async move {
                if let Ok(mut called) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, to))).await {
                    let _ = copy_bidirectional(&mut caller, &mut called).await;
                }
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the test above runs it in a network of its own"]
async fn in_a_network_of_its_own() {
    let set_up = Command::new("sh").args(["-c", SET_UP]).output().expect("sh starts");
    assert!(set_up.status.success(), "{}", talk(&set_up));
    let site = Site::new().await;
    let mut coordinator = site.coordinator();
    let address = coordinator.address().replace("http://", "https://");
    let hosts = [1, 2, 3].map(|number| site.host(number, &address));
    let step = site.wait_for(&address, 3, 5);
    set_cable(2, "down");
    let step = site.wait_for(&address, 2, step);
    set_cable(2, "up");
    site.wait_for(&address, 3, step);
    let ended = result(&coordinator.finish());
    assert!(ended["num_incidents"].as_u64() >= Some(1), "{ended}");
    for host in hosts {
        let output = host.finish();
        assert!(output.status.success(), "{}", talk(&output));
    }
    let undisturbed = result(&finish(site.world.run(&[]).args(long())));
    assert_eq!(ended["state_digest"], undisturbed["state_digest"]);
}
