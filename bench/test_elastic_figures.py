"""Scenarios of the elasticity benchmark's arithmetic: `python3 -m unittest discover bench`."""

import unittest

from elastic_figures import Row, cost_of_kill, is_whole, merged, samples_in_state, share_kept, spread, step_seconds

WORLD = 3


def steps(first, last, t, membership, contributing=WORLD, samples=6):
    """Steps first..=last, one a second, the first completed at t."""
    return [Row(t + n, step, membership, contributing, samples) for n, step in enumerate(range(first, last + 1))]


class CostOfKill(unittest.TestCase):
    def test_survivors_go_on_and_a_replacement_comes(self):
        rows = steps(1, 5, 10, 1) + steps(6, 8, 15.25, 2, 2) + steps(9, 10, 19, 3)
        self.assertEqual(cost_of_kill(rows, 14.5, WORLD), {"next_step_s": 0.75, "whole_s": 4.5, "steps_redone": 0})

    def test_a_step_that_the_old_membership_completes_after_the_kill_is_not_the_next_one(self):
        rows = steps(1, 6, 10, 1) + steps(7, 7, 16.5, 2, 2)
        self.assertEqual(cost_of_kill(rows, 14.5, WORLD)["next_step_s"], 2)

    def test_everybody_returns_to_a_checkpoint(self):
        rows = steps(1, 17, 10, 0) + steps(11, 20, 40, 1)
        self.assertEqual(cost_of_kill(rows, 26.5, WORLD), {"next_step_s": 13.5, "whole_s": 13.5, "steps_redone": 7})

    def test_what_the_old_membership_completed_after_the_kill_may_be_done_again_too(self):
        rows = steps(1, 6, 10, 1) + steps(6, 7, 16.5, 2, 2)
        self.assertEqual(cost_of_kill(rows, 14.5, WORLD)["steps_redone"], 1)

    def test_a_job_that_hangs_has_no_next_step(self):
        self.assertEqual(set(cost_of_kill(steps(1, 5, 10, 1), 14.5, WORLD).values()), {None})

    def test_a_replacement_that_only_follows_is_not_whole(self):
        self.assertIsNone(cost_of_kill(steps(1, 5, 10, 1) + steps(6, 9, 16, 2, 2), 14.5, WORLD)["whole_s"])


class Samples(unittest.TestCase):
    def test_only_steps_before_the_moment_count(self):
        self.assertEqual(samples_in_state(steps(1, 10, 10, 1), 15), 6 * 6)

    def test_a_step_done_again_counts_once(self):
        rows = steps(1, 7, 10, 0) + steps(6, 8, 20, 1)
        self.assertEqual(samples_in_state(rows, 99), 8 * 6)

    def test_work_that_was_rolled_back_and_not_done_again_does_not_count(self):
        rows = steps(1, 7, 10, 0) + steps(3, 3, 20, 1)
        self.assertEqual(samples_in_state(rows, 99), 3 * 6)

    def test_a_step_of_fewer_workers_counts_for_what_it_trained(self):
        rows = steps(1, 2, 10, 1) + steps(3, 3, 13, 2, 2, samples=4)
        self.assertEqual(samples_in_state(rows, 99), 16)


class ShareKept(unittest.TestCase):
    def test_what_follows_a_kill_is_held_against_what_follows_that(self):
        rows = steps(1, 4, 16.5, 2) + steps(5, 14, 20.5, 2) + steps(15, 20, 34.5, 3) + steps(21, 30, 40.5, 3)
        kept = share_kept(rows, [10, 20, 30, 40, 50])
        self.assertEqual(kept, {"killed": [24, 36], "undisturbed": [60, 60], "share": 0.75})

    def test_what_a_kill_makes_a_job_do_again_is_lost_in_its_own_stretch(self):
        rows = steps(1, 10, 0.5, 0) + steps(6, 10, 10.5, 1) + steps(11, 20, 20.5, 1)
        self.assertEqual(share_kept(rows, [10, 20, 30])["killed"], [0])

    def test_a_job_that_never_trained_has_no_share(self):
        self.assertIsNone(share_kept([], [10, 20, 30])["share"])


class Rows(unittest.TestCase):
    def test_a_step_is_completed_when_its_first_worker_has_completed_it(self):
        rows = [Row(10.2, 1, 1, 3, 6), Row(10.1, 1, 1, 3, 6), Row(11, 2, 1, 3, 6), Row(12, 2, 2, 3, 6)]
        self.assertEqual([row.t for row in merged(rows)], [10.1, 11, 12])

    def test_whole_means_all_workers_in_the_newest_membership(self):
        rows = steps(1, 5, 10, 1) + steps(6, 7, 16, 2, 2)
        self.assertFalse(is_whole(rows, WORLD, 1))
        self.assertTrue(is_whole(rows + steps(8, 9, 20, 3), WORLD, 2))

    def test_the_time_of_a_step_leaves_interruptions_out(self):
        self.assertEqual(step_seconds(steps(1, 2, 10, 1) + steps(3, 3, 99, 2), WORLD), 1)

    def test_a_figure_that_never_came_is_counted_and_not_averaged(self):
        self.assertEqual(spread([1, None, 3, 2]), {"median": 2, "least": 1, "most": 3, "num_never": 1})
        self.assertEqual(spread([None])["median"], None)


if __name__ == "__main__":
    unittest.main()
