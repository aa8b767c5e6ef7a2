"""What the elasticity benchmark reads out of `polo run`'s log: `python3 -m unittest discover bench`."""

import unittest

from elastic_traces import Traces


def trace(second, pid, generation, step, phase):
    place = f'phase pid={pid} generation={generation} step={step} phase="{phase}"'
    return f"2026-11-23T21:35:{second:09.6f}Z TRACE polo_worker::desk: {place}"


def read(lines):
    traces = Traces()
    for line in lines:
        traces.take(line)
    rows = sorted(traces.rows(samples_per_step=6))
    return [(round(row.t % 60, 3), row.step, row.membership, row.contributing) for row in rows]


class Steps(unittest.TestCase):
    def test_a_step_is_completed_when_the_first_worker_goes_on_with_the_next(self):
        lines = [trace(1, 7, 1, 4, "compute"), trace(1, 8, 1, 4, "compute"), trace(2, 7, 1, 4, "exchange"),
                 trace(3, 7, 1, 5, "compute"), trace(3.5, 8, 1, 5, "compute")]
        self.assertEqual(read(lines), [(3, 5, 1, 2)])

    def test_a_new_state_that_is_still_being_handed_out_is_not_complete(self):
        lines = [trace(1, 7, 1, 4, "compute"), trace(2, 7, 1, 5, "exchange")]
        self.assertEqual(read(lines), [])

    def test_the_last_step_of_a_generation_counts_though_the_next_thing_is_done_in_another(self):
        lines = [trace(1, 7, 2, 4, "compute"), trace(2, 7, 2, 4, "update"), trace(3, 7, 3, 5, "comparing states")]
        self.assertEqual(read(lines), [(3, 5, 2, 1)])

    def test_a_joiner_that_is_handed_a_state_has_completed_nothing(self):
        lines = [trace(1, 9, 3, 0, "comparing states"), trace(2, 9, 3, 5, "compute")]
        self.assertEqual(read(lines), [])

    def test_a_step_that_is_dropped_and_done_again_is_completed_once(self):
        lines = [trace(1, 7, 1, 4, "compute"), trace(2, 7, 2, 4, "comparing states"), trace(3, 7, 2, 4, "compute"),
                 trace(4, 7, 2, 5, "snapshot"), trace(5, 7, 2, 5, "compute")]
        self.assertEqual(read(lines), [(4, 5, 2, 1)])

    def test_the_newest_process_of_a_worker_is_known(self):
        traces = Traces()
        for line in ["worker w1 started (pid 70)", "worker w1 exited: signal: 9", "worker w1 started (pid 71)"]:
            traces.take(line)
        self.assertEqual(traces.pids, {1: 71})


if __name__ == "__main__":
    unittest.main()
