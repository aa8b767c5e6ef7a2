//! A network for every worker, which can be cut without anybody being told, as it is between real machines.
//!
//! `polo chaos` moves into a network namespace of its own, with a user namespace in which it may do that, and starts
//! every worker in another one, joined to it by a switch. All of it vanishes with the processes, and the machine's own
//! network is never touched. It needs `ip` (iproute2), `unshare` and `nsenter` (util-linux).

use std::{
    net::{IpAddr, Ipv4Addr},
    os::unix::process::CommandExt,
    path::Path,
};

use polo_recipe::config::Recipe;
use tokio::process::Command;

/// Set in the process that has moved.
const MARK: &str = "POLO_CHAOS_HAS_MOVED";
/// Into a user namespace in which this user is root, and a network namespace.
const MOVE: [&str; 3] = ["--map-root-user", "--net", "--"];

/// The switch, and this side of it.
const SET_UP: &str = "ip link set lo up && ip link add polo type bridge && ip link set polo up && \
                      ip address add 10.80.0.1/16 dev polo";
const COORDINATOR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 80, 0, 1));

/// In a worker's namespace: a cable to the switch of process $1, then the worker in place of the shell.
const PLUG_IN: &str = r#"ip link set lo up && ip link add eth0 type veth peer name "$2" netns "$1" &&
    ip address add "$3/16" dev eth0 && ip link set eth0 up &&
    nsenter --target "$1" --net ip link set "$2" master polo up && shift 3 && exec "$@""#;

/// How the processes of a run reach each other.
#[derive(Debug)]
pub enum Network {
    /// Through the machine's own loopback device, which nothing can be done to.
    Loopback,
    /// Each worker through a cable of its own.
    Cables {
        /// Workers started so far: no two have the same cable and address.
        num_cables: u16,
    },
}

/// A worker's way to all others.
#[derive(Debug, Clone, PartialEq)]
pub struct Cable {
    /// The end at the switch.
    device: String,
    /// The worker's address.
    pub ip: IpAddr,
}

impl Network {
    /// Moves this process into a namespace, if the system lets it: it starts again there with the same arguments and the
    /// same pid. `Err` says why networks cannot be cut.
    pub fn enter(recipe: &Recipe) -> Result<Self, String> {
        if std::env::var_os(MARK).is_some() {
            return Ok(Self::Cables { num_cables: 0 });
        }
        Err(obstacle(recipe).unwrap_or_else(move_and_set_up))
    }

    /// Where the coordinator listens.
    pub fn coordinator_ip(&self) -> IpAddr {
        match self {
            Self::Loopback => Ipv4Addr::LOCALHOST.into(),
            Self::Cables { .. } => COORDINATOR,
        }
    }

    /// A cable for a worker that is about to start, where there are any.
    pub fn new_cable(&mut self) -> Option<Cable> {
        let Self::Cables { num_cables } = self else { return None };
        *num_cables += 1;
        // The coordinator has the first address.
        let [high, low] = (*num_cables + 1).to_be_bytes();
        Some(Cable { device: format!("polo{num_cables}"), ip: Ipv4Addr::new(10, 80, high, low).into() })
    }
}

/// What speaks against namespaces for this recipe on this machine.
fn obstacle(recipe: &Recipe) -> Option<String> {
    let sources = [recipe.corpus.url.clone(), recipe.model.init.clone().into()];
    if let Some(url) = sources.iter().find(|url| url.contains("://") && !url.starts_with("file://")) {
        return Some(format!("{url} cannot be reached from a network namespace"));
    }
    let trial = format!("{SET_UP} && ip link add one type veth peer name other && nsenter --version >&2");
    let tried = std::process::Command::new("unshare").args(MOVE).args(["sh", "-c", &trial]).output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let words = String::from_utf8_lossy(&output.stderr);
            Some(words.lines().next_back().unwrap_or("network namespaces cannot be made here").to_owned())
        }
        Err(error) => Some(format!("cannot start unshare (of util-linux): {error}")),
    }
}

/// Returns only with the reason why it could not.
fn move_and_set_up() -> String {
    let Ok(this) = std::env::current_exe() else { return "this program cannot be found".into() };
    let mut command = std::process::Command::new("unshare");
    command.args(MOVE).args(["sh", "-c", &format!("{SET_UP} && exec \"$@\""), "sh"]).arg(this);
    let error = command.args(std::env::args_os().skip(1)).env(MARK, "yes").exec();
    format!("cannot start unshare (of util-linux): {error}")
}

impl Cable {
    /// A command that runs `program` at the other end.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--net", "--", "sh", "-c", PLUG_IN, "sh"]).arg(std::process::id().to_string());
        command.arg(&self.device).arg(self.ip.to_string()).arg(program);
        command
    }

    /// Lets nothing through, or everything again; of no effect if the worker is gone, and its cable with it.
    pub async fn set(&self, is_whole: bool) {
        let state = if is_whole { "up" } else { "down" };
        let set = Command::new("ip").args(["link", "set", &self.device, state]).output().await;
        if let Ok(output) = set
            && !output.status.success()
        {
            tracing::debug!("{}: {}", self.device, String::from_utf8_lossy(&output.stderr).trim_end());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_workers_have_the_same_cable_or_the_coordinators_address() {
        let mut network = Network::Cables { num_cables: 0 };
        let cables: Vec<_> = (0..600).map(|_| network.new_cable().expect("a cable")).collect();
        let devices: std::collections::BTreeSet<_> = cables.iter().map(|c| &c.device).collect();
        let mut ips: std::collections::BTreeSet<_> = cables.iter().map(|c| c.ip).collect();
        ips.insert(COORDINATOR);
        assert_eq!((devices.len(), ips.len()), (600, 601));
        assert!(devices.iter().all(|device| device.len() <= 15), "longer names are not possible");
        assert!(Network::Loopback.new_cable().is_none());
    }
}
