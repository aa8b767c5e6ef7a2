"""The jobs that the elasticity benchmark kills workers of: each starts its workers, sees that dead ones are replaced,
and tells which steps were completed."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from elastic_figures import Row, merged
from elastic_traces import Traces
from peer_log import die_with_parent

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "target/debug"
PYTHON = ROOT / "third_party/torchft/bin"
WORLD, SAMPLES_PER_WORKER, SEQ_LEN, VOCAB = 3, 2, 256, 4096


class JobEnded(Exception):
    """A job that should have gone on did not."""


class Tail:
    """The complete lines that a file has got since it was last asked."""

    def __init__(self, path):
        self.path, self.offset = path, 0

    def lines(self):
        if not self.path.exists():
            return []
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            new = file.read()
        new = new[:new.rfind(b"\n") + 1]
        self.offset += len(new)
        return new.decode(errors="replace").splitlines()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Job:
    """Three workers of one kind in a folder of their own."""

    def __init__(self, folder):
        folder.mkdir(parents=True)
        self.folder, self.processes, self.rows_seen, self.pids = folder, [], [], {}

    def spawn(self, command, log, env=None):
        with open(self.folder / log, "a") as output:
            process = subprocess.Popen(
                [str(word) for word in command], env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, preexec_fn=die_with_parent)
        self.processes.append(process)
        return process

    def rows(self):
        """Every step so far, once for each membership."""
        self.read()
        return merged(self.rows_seen)

    def attend(self):
        """Does what the job's own supervisor does; an error if there is nothing left to supervise."""
        if self.processes[0].poll() is not None:
            raise JobEnded(f"{self.name} ended with status {self.processes[0].returncode}:\n{self.last_words()}")

    def kill(self, worker):
        """An error if that worker is not there: its number may be another process's by now."""
        self.read()
        pid = self.pids[worker]
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text()
        except FileNotFoundError:
            command = ""
        if self.WORKER not in command:
            raise JobEnded(f"worker {worker} of {self.name} (pid {pid}) is gone already:\n{self.last_words()}")
        os.kill(pid, signal.SIGKILL)

    def last_words(self):
        """The ends of its logs."""
        ends = {path.name: path.read_text(errors="replace").splitlines()[-15:] for path in self.folder.glob("*.log")}
        return "\n".join(f"--- {name}\n" + "\n".join(end) for name, end in ends.items())

    def stop(self):
        """Asks first, so that a launcher ends its own workers."""
        for process in self.processes:
            process.terminate()
        until = time.time() + 20
        while time.time() < until and any(process.poll() is None for process in self.processes):
            time.sleep(0.05)
        for process in self.processes:
            process.kill()
            process.wait()


class Polo(Job):
    """`polo run --respawn`, whose workers trace what they do."""

    name = "polo"
    WORKER = "polo-worker"

    def __init__(self, folder):
        super().__init__(folder)
        corpus = [PROGRAMS / "examples/random_corpus", folder / "corpus", str(VOCAB), "100000"]
        subprocess.run(corpus, check=True)
        self.tail, self.traces = Tail(folder / "polo.log"), Traces()
        self.pids = self.traces.pids
        command = [PROGRAMS / "polo", "run", ROOT / "bench/elastic.toml", "--workers", WORLD, "--respawn",
                   "--listen", "127.0.0.1:0", "--log-every", "1000000", "--set", f"run.store={folder}/store",
                   "--set", f"corpus.url={folder}/corpus"]
        traces = {"POLO_LOG": "warn,polo_worker::desk=trace", "POLO_CACHE": str(folder / "cache")}
        self.spawn(command, "polo.log", traces)

    def read(self):
        for line in self.tail.lines():
            self.traces.take(line)
        self.rows_seen = self.traces.rows(WORLD * SAMPLES_PER_WORKER)


class Peer(Job):
    """Workers that write events.PID files."""

    def __init__(self, folder):
        super().__init__(folder)
        self.tails = {}

    def environment(self):
        return {"BENCH_FOLDER": str(self.folder)}

    def script(self, name):
        shape = ["--micro", SAMPLES_PER_WORKER, "--seq", SEQ_LEN, "--vocab", VOCAB]
        return [ROOT / "bench" / name, *shape]

    def read(self):
        for path in self.folder.glob("events.*"):
            self.tails.setdefault(path, Tail(path))
        for tail in self.tails.values():
            for line in tail.lines():
                self.take(json.loads(line))

    def take(self, event):
        if "pid" in event:
            self.pids[event["worker"]] = event["pid"]
        else:
            self.rows_seen.append(Row(**event))


class Torchrun(Peer):
    """torchrun with the c10d rendezvous. Without the switch below restarts mostly hang: the new workers meet in a store
    that the dead ones had served."""

    name = "torchrun"
    WORKER = "peer_torchrun.py"
    CHECKPOINT_EVERY = 10

    def __init__(self, folder):
        super().__init__(folder)
        port = free_port()
        launcher = [PYTHON / "python", "-m", "torch.distributed.run", "--nproc-per-node", WORLD, "--max-restarts", 1000,
                    "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", port]
        self.spawn([*launcher, *self.script("peer_torchrun.py")], "torchrun.log", self.environment())

    def environment(self):
        every = str(self.CHECKPOINT_EVERY)
        return {**super().environment(), "BENCH_CHECKPOINT_EVERY": every, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


class Torchft(Peer):
    """torchft's lighthouse and three replica groups of one worker; this process starts a dead one again at once."""

    name = "torchft"
    MENDED = "1"
    PATIENCE_MS = 500

    def __init__(self, folder):
        super().__init__(folder)
        self.port = free_port()
        # By its interpreter: the first line of the script names the folder that the environment was made in.
        lighthouse = [PYTHON / "python", PYTHON / "torchft_lighthouse", "--bind", f"127.0.0.1:{self.port}",
                      "--min_replicas", 2, "--heartbeat_timeout_ms", self.PATIENCE_MS,
                      "--join_timeout_ms", self.PATIENCE_MS]
        self.spawn(lighthouse, "lighthouse.log")
        self.replicas = {replica: self.start(replica) for replica in range(WORLD)}

    def start(self, replica):
        environment = {**self.environment(), "BENCH_REPLICA": str(replica), "BENCH_MENDED": self.MENDED,
                       "TORCHFT_LIGHTHOUSE": f"http://127.0.0.1:{self.port}"}
        return self.spawn([PYTHON / "python", *self.script("peer_torchft.py")], f"replica-{replica}.log", environment)

    def attend(self):
        super().attend()
        for replica, process in self.replicas.items():
            if process.poll() is not None:
                self.replicas[replica] = self.start(replica)

    def kill(self, worker):
        self.replicas[worker].kill()


class TorchftAsShipped(Torchft):
    """Without the mended hook."""

    name = "torchft-as-shipped"
    MENDED = "0"


JOBS = {job.name: job for job in [Polo, Torchrun, Torchft, TorchftAsShipped]}
