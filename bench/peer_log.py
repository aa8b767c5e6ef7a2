"""What a peer's worker writes down for the elasticity benchmark, and its tie to whoever started it."""

import ctypes
import json
import os
import signal
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1


def die_with_parent():
    """Has the kernel kill this process when the one that started it is gone, so that no job outlives the benchmark."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class EventLog:
    """Lines of JSON in FOLDER/events.PID: first who this is, then one for each completed step."""

    def __init__(self, folder, worker):
        self.file = open(Path(folder) / f"events.{os.getpid()}", "a", buffering=1)
        self.write(worker=worker, pid=os.getpid())

    def write(self, **event):
        self.file.write(json.dumps({"t": time.time(), **event}) + "\n")

    def step(self, step, membership, contributing, samples):
        self.write(step=step, membership=membership, contributing=contributing, samples=samples)
