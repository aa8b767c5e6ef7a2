"""What the demos share: a SeaweedFS that serves S3, and a run of `polo` in which a worker is killed."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
POLO = ROOT / "target/debug/polo"
WEED = ROOT / "third_party/seaweedfs/weed"
TOKENIZER = ROOT / "third_party/tokenizer/tokenizer.json"
PORT_FLAGS = ["s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
              "filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc"]


def say(text):
    print(f"\n== {text}", file=sys.stderr, flush=True)


def require(*paths):
    """Ends the demo if something is not there that `make` would have built or fetched."""
    if missing := [str(path.relative_to(ROOT)) for path in paths if not path.exists()]:
        sys.exit(f"demo: {', '.join(missing)} missing; start the demo with make, which builds and fetches what it needs")


def call(*command):
    """Runs a command whose output is for people, and ends the demo with it if it fails."""
    if (status := subprocess.run(command, stdout=sys.stderr).returncode) != 0:
        sys.exit(f"demo: {Path(command[0]).name} ended with status {status}")


def read_json(*command):
    """What a command prints as JSON."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"demo: {Path(command[0]).name} ended with status {done.returncode}")
    return json.loads(done.stdout)


def free_ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


def start_s3(folder):
    """A SeaweedFS with the bucket `polo`; points this process's environment at it."""
    ports = free_ports(len(PORT_FLAGS))
    os.environ.update(AWS_ACCESS_KEY_ID="polo", AWS_SECRET_ACCESS_KEY="polo")
    weed = [WEED, "mini", f"-dir={folder}", "-bucket=polo", "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1", "-webdav=false", "-admin.ui=false", "-master.telemetry=false",
            "-s3.port.iceberg=0", "-s3.port.lance=0"]
    weed += [f"-{flag}={port}" for flag, port in zip(PORT_FLAGS, ports)]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(weed, stdin=quiet, stdout=quiet, stderr=quiet, cwd=folder)
    deadline = time.monotonic() + 30
    while socket.socket().connect_ex(("127.0.0.1", ports[0])) != 0:
        if server.poll() is not None or time.monotonic() > deadline:
            server.kill()
            sys.exit("demo: SeaweedFS did not come up within 30 s")
        time.sleep(0.05)
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{ports[0]}"
    return server


@contextlib.contextmanager
def workplace(folder):
    """A folder to work in with a SeaweedFS in it; a temporary one, gone afterwards, where none is given."""
    work = folder or Path(tempfile.mkdtemp(prefix="polo-demo-"))
    (work / "s3").mkdir(parents=True, exist_ok=True)
    server = start_s3((work / "s3").resolve())
    try:
        yield work
    finally:
        server.kill()
        server.wait()
        if folder is None:
            shutil.rmtree(work, ignore_errors=True)


def train(recipe, name, workers, kill_after_step=None, on_listening=None, options=()):
    """Runs the recipe with its own store; `on_listening` gets the coordinator's address. Returns the last JSON line."""
    command = [POLO, "run", recipe, "--workers", str(workers), "--respawn", "--listen", "127.0.0.1:0",
               "--set", f"run.store=s3://polo/{name}", "--set", "corpus.url=s3://polo/corpus", *options]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    pids = {}
    for line in run.stderr:
        print(line, end="", file=sys.stderr, flush=True)
        if started := re.match(r"worker (\S+) started \(pid (\d+)\)", line):
            pids[started[1]] = int(started[2])
        if on_listening and (listens := re.match(r"coordinator listens on (\S+)", line)):
            on_listening(listens[1])
        if kill_after_step is not None and line.startswith(f"step {kill_after_step:>5} "):
            say(f"kill -9 {pids['w1']} (worker w1)")
            os.kill(pids["w1"], signal.SIGKILL)
    output = run.stdout.read()
    if run.wait() != 0:
        sys.exit(f"demo: polo run ended with status {run.returncode}")
    return json.loads(output.splitlines()[-1])
