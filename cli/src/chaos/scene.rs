//! What faults are brought upon: a coordinator, workers and a store, and what is still to be mended.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use polo_recipe::config::Recipe;
use rustix::process::Signal;
use tokio::{process::Command, time::Instant};

use super::{
    Error,
    fault::{Fault, Situation},
    files::StoreFolder,
    network::{Cable, Network},
    processes::{Exit, Processes},
};
use polo_log::say;

const COORDINATOR: &str = "coordinator";
/// Whoever has lived for less is not started again at once.
const SHORT_LIFE: Duration = Duration::from_secs(1);
const PAUSE_AFTER_SHORT_LIFE: Duration = Duration::from_millis(500);

/// What is run, and where.
pub struct Setting {
    /// The resolved recipe; its store is a folder.
    pub recipe: Recipe,
    /// For the recipe and the logs.
    pub folder: PathBuf,
    /// The worker's program.
    pub worker_program: PathBuf,
    /// Worker processes.
    pub num_workers: u16,
}

/// What ends a fault that lasts.
#[derive(Debug, Clone, PartialEq)]
enum Mend {
    StartCoordinator,
    ThawCoordinator,
    StartWorker(String),
    ThawWorker(String),
    Reconnect(String, Cable),
    GiveStoreBack,
}

/// How the coordinator fares.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Coordinator {
    Up,
    Frozen,
    Away { until: Instant },
}

/// Processes and store of one run.
pub struct Scene<'a> {
    setting: Setting,
    address: SocketAddr,
    network: &'a mut Network,
    /// Of the workers that live, where they have any.
    cables: BTreeMap<String, Cable>,
    recipe_path: PathBuf,
    /// The processes.
    pub processes: Processes,
    store: StoreFolder,
    coordinator: Coordinator,
    is_store_whole: bool,
    /// Frozen or cut off.
    silent: BTreeSet<String>,
    leaving: BTreeSet<String>,
    mends: Vec<(Instant, Mend)>,
    num_names: u16,
}

/// What the exit of a process means.
pub enum Meaning {
    /// The run goes on; whoever is missing is started again.
    GoesOn,
    /// The coordinator ended the run with this line.
    RunEnded(String),
    /// The coordinator exited with an error that no fault explains.
    CoordinatorFailed(Exit),
}

impl<'a> Scene<'a> {
    /// Starts the coordinator and all workers.
    pub fn start(setting: Setting, network: &'a mut Network, address: SocketAddr) -> Result<Self, Error> {
        std::fs::create_dir_all(&setting.folder).map_err(Error::at(&setting.folder))?;
        let recipe_path = setting.folder.join("recipe.toml");
        std::fs::write(&recipe_path, setting.recipe.to_toml()).map_err(Error::at(&recipe_path))?;
        let mut scene = Self {
            store: StoreFolder::open(Path::new(&setting.recipe.run.store))?,
            processes: Processes::new(&setting.folder),
            coordinator: Coordinator::Up,
            is_store_whole: true,
            silent: BTreeSet::new(),
            leaving: BTreeSet::new(),
            mends: Vec::new(),
            num_names: 0,
            cables: BTreeMap::new(),
            recipe_path,
            address,
            network,
            setting,
        };
        scene.start_coordinator()?;
        (0..scene.setting.num_workers).try_for_each(|_| scene.start_new_worker())?;
        Ok(scene)
    }

    fn start_coordinator(&mut self) -> Result<(), Error> {
        let this = std::env::current_exe().map_err(Error::at(Path::new("this program")))?;
        let mut command = Command::new(this);
        command.arg("coordinator").arg(&self.recipe_path).args(["--listen", &self.address.to_string()]);
        // With cut cables it has an address of its own, in a network that is this scene's alone.
        command.args(["--insecure", "--workers", &self.setting.num_workers.to_string()]);
        self.coordinator = Coordinator::Up;
        self.processes.start(COORDINATOR, command)
    }

    fn start_worker(&mut self, name: &str) -> Result<(), Error> {
        let cable = self.network.new_cable();
        let program = &self.setting.worker_program;
        let mut command = cable.as_ref().map_or_else(|| Command::new(program), |cable| cable.command(program));
        let ip = cable.as_ref().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |cable| cable.ip);
        self.cables.extend(cable.map(|cable| (name.to_owned(), cable)));
        command.arg(&self.recipe_path).args(["--id", name, "--while-stdin-open", "--listen"]).arg(format!("{ip}:0"));
        command.arg("--coordinator").arg(format!("http://{}", self.address));
        self.processes.start(name, command)
    }

    fn start_new_worker(&mut self) -> Result<(), Error> {
        let name = format!("w{}", self.num_names);
        self.num_names += 1;
        self.start_worker(&name)
    }

    fn workers(&self) -> impl Iterator<Item = &String> {
        self.processes.names().filter(|name| *name != COORDINATOR)
    }

    /// What could be hurt now.
    pub fn situation(&self) -> Situation {
        let is_well = |name: &&String| !self.silent.contains(*name) && !self.leaving.contains(*name);
        Situation {
            workers: self.workers().filter(is_well).cloned().collect(),
            coordinator: self.coordinator == Coordinator::Up && self.processes.is_alive(COORDINATOR),
            store: self.is_store_whole,
            checkpoint: self.store.has_checkpoint(),
            cables: !self.cables.is_empty(),
            heartbeat_timeout_ms: self.setting.recipe.workers.heartbeat_timeout_ms,
        }
    }

    /// Whether the store can be used.
    pub fn is_store_whole(&self) -> bool {
        self.is_store_whole
    }

    /// Brings a fault about; `false` if there was nothing to hurt after all.
    pub async fn inflict(&mut self, fault: &Fault) -> Result<bool, Error> {
        let after = |ms: u64| Instant::now() + Duration::from_millis(ms);
        match fault {
            Fault::KillWorker { worker } => self.processes.signal(worker, Signal::KILL),
            Fault::FreezeWorker { worker, ms } => {
                self.processes.signal(worker, Signal::STOP);
                self.silent.insert(worker.clone());
                self.mends.push((after(*ms), Mend::ThawWorker(worker.clone())));
            }
            Fault::CutOffWorker { worker, ms } => {
                let Some(cable) = self.cables.get(worker).cloned() else { return Ok(false) };
                cable.set(false).await;
                self.silent.insert(worker.clone());
                self.mends.push((after(*ms), Mend::Reconnect(worker.clone(), cable)));
            }
            Fault::DrainWorker { worker } => {
                self.processes.signal(worker, Signal::TERM);
                self.leaving.insert(worker.clone());
                self.start_new_worker()?;
            }
            Fault::KillCoordinator { ms } => {
                self.coordinator = Coordinator::Away { until: after(*ms) };
                self.processes.signal(COORDINATOR, Signal::KILL);
            }
            Fault::FreezeCoordinator { ms } => {
                self.coordinator = Coordinator::Frozen;
                self.processes.signal(COORDINATOR, Signal::STOP);
                self.mends.push((after(*ms), Mend::ThawCoordinator));
            }
            Fault::DamageCheckpoint { draw } => return self.damage_and_kill_all(*draw).await,
            Fault::BreakStore { ms } => {
                self.store.break_chunks()?;
                self.is_store_whole = false;
                self.mends.push((after(*ms), Mend::GiveStoreBack));
            }
        }
        Ok(true)
    }

    async fn damage_and_kill_all(&mut self, draw: u64) -> Result<bool, Error> {
        let Some(step) = self.store.damage_newest_checkpoint(draw).await? else { return Ok(false) };
        say(format_args!("  the newest checkpoint, of step {step}, is damaged"));
        for worker in self.workers() {
            self.processes.signal(worker, Signal::KILL);
        }
        Ok(true)
    }

    /// When the next thing is to be mended.
    pub fn next_mend(&self) -> Option<Instant> {
        self.mends.iter().map(|(at, _)| *at).min()
    }

    /// Mends whatever it is time for; `true` if something was.
    pub async fn mend(&mut self, now: Instant) -> Result<bool, Error> {
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.mends).into_iter().partition(|(at, _)| *at <= now);
        self.mends = later;
        let has_mended = !due.is_empty();
        for (_, mend) in due {
            self.carry_out(mend).await?;
        }
        Ok(has_mended)
    }

    async fn carry_out(&mut self, mend: Mend) -> Result<(), Error> {
        match mend {
            Mend::StartCoordinator => return self.start_coordinator(),
            Mend::StartWorker(name) => return self.start_worker(&name),
            Mend::ThawCoordinator => {
                self.coordinator = Coordinator::Up;
                self.processes.signal(COORDINATOR, Signal::CONT);
            }
            Mend::ThawWorker(name) => {
                self.silent.remove(&name);
                self.processes.signal(&name, Signal::CONT);
            }
            Mend::Reconnect(name, cable) => {
                self.silent.remove(&name);
                cable.set(true).await;
            }
            Mend::GiveStoreBack => {
                self.is_store_whole = true;
                return self.store.mend_chunks();
            }
        }
        Ok(())
    }

    /// Decides what the exit of a process means, and has a new one started where that is right. While the store was
    /// broken, a coordinator may give up, as long as another one can take the run up.
    pub fn on_exit(&mut self, exit: Exit, was_store_broken: bool) -> Meaning {
        let has_succeeded = exit.status.is_some_and(|status| status.success());
        let soonest = if exit.lived < SHORT_LIFE { PAUSE_AFTER_SHORT_LIFE } else { Duration::ZERO };
        let soonest = Instant::now() + soonest;
        if exit.name != COORDINATOR {
            self.silent.remove(&exit.name);
            let was_leaving = self.leaving.remove(&exit.name);
            // One that leaves with success was asked to, or the run is over.
            if !has_succeeded && !was_leaving {
                self.mends.push((soonest, Mend::StartWorker(exit.name)));
            }
            return Meaning::GoesOn;
        }
        match self.coordinator {
            _ if has_succeeded => {
                return Meaning::RunEnded(self.processes.last_output(COORDINATOR).unwrap_or_default());
            }
            Coordinator::Away { until } => self.mends.push((until, Mend::StartCoordinator)),
            _ if was_store_broken => {
                say("  the coordinator gave up while the store was broken, and is started again");
                self.mends.push((soonest, Mend::StartCoordinator));
            }
            _ => return Meaning::CoordinatorFailed(exit),
        }
        self.replace_those_who_left(soonest);
        Meaning::GoesOn
    }

    /// A coordinator that is killed when it has just let its workers go finds none when it is back.
    fn replace_those_who_left(&mut self, at: Instant) {
        let to_come = self.mends.iter().filter(|(_, mend)| matches!(mend, Mend::StartWorker(_))).count();
        let there = self.workers().filter(|name| !self.leaving.contains(*name)).count() + to_come;
        for _ in there..self.setting.num_workers.into() {
            let name = format!("w{}", self.num_names);
            self.num_names += 1;
            self.mends.push((at, Mend::StartWorker(name)));
        }
    }

    /// Where the coordinator is to be found.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}
