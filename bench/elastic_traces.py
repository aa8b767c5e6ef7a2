"""What `polo run` and its workers say, line by line, as the steps that were completed. Pure."""

import re
from collections import defaultdict
from datetime import datetime

from elastic_figures import Row

TRACE = re.compile(r'(\S+Z) .* phase pid=(\d+) generation=(\d+) step=(\d+) phase="([^"]*)"')
STARTED = re.compile(r"worker w(\d+) started \(pid (\d+)\)")
# In these a worker does not hold the whole of the state that the trace names.
UNFINISHED = {"update", "exchange"}


class Traces:
    """Workers trace each thing they begin, with the step of their state. One that computes a step and then goes on to
    something else with the next state has completed it; one that was handed a state has not."""

    def __init__(self):
        self.pids = {}
        self.computing = {}  # by process: the generation and state that it computed last
        self.computed_by = defaultdict(set)
        self.completed = {}

    def take(self, line):
        if trace := TRACE.match(line):
            t, pid, generation, step, phase = trace.groups()
            self.begin(datetime.fromisoformat(t).timestamp(), int(pid), int(generation), int(step), phase)
        elif started := STARTED.match(line):
            self.pids[int(started[1])] = int(started[2])

    def begin(self, t, pid, generation, step, phase):
        computed_in, computed_from = self.computing.get(pid, (None, None))
        if computed_from == step - 1 and phase not in UNFINISHED:
            # In the generation that computed it, though the worker may have heard of the next one meanwhile.
            self.completed[computed_in, step] = min(t, self.completed.get((computed_in, step), t))
        if phase == "compute":
            self.computing[pid] = (generation, step)
            self.computed_by[generation, step].add(pid)

    def rows(self, samples_per_step):
        """Every completed step. Its samples do not depend on how many workers computed it."""
        return [Row(t, step, generation, len(self.computed_by[generation, step - 1]), samples_per_step)
                for (generation, step), t in self.completed.items()]
