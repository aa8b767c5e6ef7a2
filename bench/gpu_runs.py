"""Runs that bench/gpu measures: a coordinator and workers of Polo, and its peer."""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import gpu_figures as figures

HERE = Path(__file__).resolve().parent
PATIENCE_S = 400
NUMBERS = itertools.count()


def memory_bytes():
    """Of the first GPU, by all processes."""
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    return int(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()[0]) << 20


def resident_bytes(pid):
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
    except (OSError, TypeError):
        return 0


class PeakMemory:
    """The most that a GPU, or else a process, has used while this was open."""

    def __init__(self, is_gpu, pids):
        self.is_gpu, self.pids, self.peak, self.done = is_gpu, pids, 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self):
        while not self.done.wait(0.1):
            now = memory_bytes() if self.is_gpu else max(map(resident_bytes, list(self.pids)), default=0)
            self.peak = max(self.peak, now)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()


class Ended:
    """What a run came to."""

    def __init__(self, result, talk, recoveries_s, peak_bytes):
        steps = figures.steps_of(talk)
        self.digest, self.recoveries_s, self.peak_bytes = result["state_digest"], recoveries_s, peak_bytes
        self.losses, self.speeds = [loss for _, loss, _ in steps], [speed for *_, speed in steps]


class Run:
    """One run of Polo. Each worker says that it is a host of its own, so that NCCL lets two share a card."""

    def __init__(self, programs, folder, sets):
        number = next(NUMBERS)
        self.programs, self.folder = programs, folder / f"run-{number}"
        self.folder.mkdir()
        self.is_gpu = sets["run.device"] == "cuda"
        sets = {**sets, "run.store": self.folder / "store"}
        self.flags = [flag for key, value in sets.items() for flag in ("--set", f"{key}={self.text(value)}")]
        with socket.create_server(("127.0.0.1", 0)) as held:
            self.address = f"127.0.0.1:{held.getsockname()[1]}"
        self.workers, self.recipe = {}, HERE / "gpu.toml"

    @staticmethod
    def text(value):
        return str(value).lower() if isinstance(value, bool) else str(value)

    def planned_bytes(self, num_workers):
        asked = [self.programs / "polo", "plan", self.recipe, "--gpus", str(num_workers), "--gpu-memory", "80GiB", "--json",
                 *self.flags]
        return json.loads(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)["total_bytes"]

    def start_worker(self, name):
        program = self.programs / ("polo-worker-cuda" if self.is_gpu else "polo-worker")
        command = [program, self.recipe, *self.flags, "--id", name, "--coordinator", f"http://{self.address}",
                   "--listen", "127.0.0.1:0", "--cache", self.folder.parent / "cache"]
        log = open(self.folder / f"{name}.log", "w")
        self.workers[name] = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "NCCL_HOSTID": name})

    def watch(self):
        """Writes down all that the status says until the run ends."""
        asked = [self.programs / "polo", "status", "--address", f"http://{self.address}", "--watch", "--json"]
        with open(self.folder / "status.jsonl", "w") as told:
            return subprocess.Popen(asked, stdout=told, stderr=subprocess.DEVNULL)

    def last_status(self):
        return json.loads((self.folder / "status.jsonl").read_text().splitlines()[-1])

    def finish(self, num_workers, strike=None):
        """Runs to the end. A `strike` is a signal for one worker in the middle, which is then replaced."""
        log = self.folder / "coordinator.log"
        command = [self.programs / "polo", "coordinator", self.recipe, *self.flags, "--listen", self.address,
                   "--workers", str(num_workers)]
        with open(log, "w") as talk:
            coordinator = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=talk, text=True)
        for number in range(num_workers):
            self.start_worker(f"w{number}")
        recoveries = []
        try:
            with PeakMemory(self.is_gpu, [w.pid for w in self.workers.values()]) as memory:
                if strike:
                    watcher = self.strike(strike, log)
                out, _ = coordinator.communicate(timeout=PATIENCE_S)
            if coordinator.returncode != 0:
                raise subprocess.CalledProcessError(coordinator.returncode, command)
            if strike:
                watcher.wait(PATIENCE_S)
                recoveries = figures.recoveries_s(self.last_status())
            return Ended(json.loads(out.splitlines()[-1]), log.read_text(), recoveries, memory.peak)
        except (subprocess.SubprocessError, TimeoutError):
            for file in sorted(self.folder.glob("*.log")):
                print(f"--- {file.name}\n{file.read_text()[-3000:]}", file=sys.stderr)
            raise
        finally:
            for process in [coordinator, *self.workers.values()]:
                process.kill()
                process.wait()

    def strike(self, name, log):
        """Signals the last worker once three steps are taken, and starts another. Returns what watches."""
        self.until(lambda: len(figures.steps_of(log.read_text())) >= 3, "three steps")
        watcher, victim = self.watch(), f"w{len(self.workers) - 1}"
        self.workers[victim].send_signal(getattr(signal, f"SIG{name}"))
        self.start_worker("replacement")
        return watcher

    @staticmethod
    def until(holds, what):
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError(f"gpu: waited {PATIENCE_S} s for {what}")
            time.sleep(0.05)


def peer_run(shape, seq_len, samples, steps, args):
    """Tokens per second and peak memory of transformers with DDP in one process."""
    flags = {"hidden": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
             "kv-heads": "num_key_value_heads", "intermediate": "intermediate_size", "vocab": "vocab_size"}
    command = [args.python, HERE / "peer_ddp.py", "--device", args.device, "--seq", str(seq_len), "--micro", "4",
               "--accumulate", str(samples // 4), "--steps", str(steps - 2), "--warm-up", "2"]
    command += [text for flag, key in flags.items() for text in (f"--{flag}", str(shape[key]))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as peer:
        with PeakMemory(args.device == "cuda", [peer.pid]) as memory:
            out, _ = peer.communicate(timeout=PATIENCE_S)
    if peer.returncode != 0:
        sys.exit("gpu: the peer failed")
    return json.loads(out.splitlines()[-1])["tokens_per_s"], memory.peak


def matmul_flops_per_s(args):
    """The rate of large matrix products, which MFU is a fraction of."""
    program = """
import sys, time, torch
device, n = sys.argv[1], int(sys.argv[2])
a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32) for _ in "ab")
wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
best = 0
for _ in range(5):
    wait(); start = time.perf_counter()
    for _ in range(4): a @ b
    wait(); best = max(best, 4 * 2 * n ** 3 / (time.perf_counter() - start))
print(best)
"""
    asked = [args.python, "-c", program, args.device, "8192" if args.device == "cuda" else "512"]
    return float(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)
