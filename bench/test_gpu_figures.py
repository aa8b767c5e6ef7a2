"""The arithmetic of bench/gpu: `python3 -m unittest discover bench`."""

import unittest

from gpu_figures import flops_per_token, furthest_apart, mfu, num_params, recoveries_s, steps_of, table

HALF_B = {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
          "intermediate_size": 4864, "vocab_size": 151936}
ONE_AND_A_HALF_B = {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
                    "intermediate_size": 8960, "vocab_size": 151936}


class Figures(unittest.TestCase):
    def test_parameters_are_those_of_the_published_models(self):
        self.assertEqual(num_params(HALF_B), 494_032_768)
        self.assertEqual(num_params(ONE_AND_A_HALF_B), 1_543_714_304)

    def test_a_chip_that_does_nothing_else_has_an_mfu_of_one(self):
        per_token = flops_per_token(HALF_B, 4096)
        self.assertEqual(per_token, 6 * 494_032_768 + 6 * 24 * 896 * 4096)
        self.assertAlmostEqual(mfu(1000, HALF_B, 4096, 1000 * per_token), 1.0)

    def test_steps_are_read_from_what_polo_says(self):
        talk = "worker w0 started (pid 3)\nstep     7 bench  loss 4.2512 (random 4.25)  lr 1.00e-05  grad norm 1.200  81234 tokens/s  1 worker\n"
        self.assertEqual(steps_of(talk), [(7, 4.2512, 81234.0)])

    def test_runs_that_differ_in_one_step_differ_by_that(self):
        self.assertAlmostEqual(furthest_apart([2.0, 2.02], [2.0, 2.0]), 0.01)
        with self.assertRaises(ValueError):
            furthest_apart([2.0], [2.0, 2.0])

    def test_a_recovery_is_the_abort_and_the_forming(self):
        status = {"incidents": [{"bill": {"abort_ms": 40, "reform_ms": 1200, "detect_ms": 9000}}, {"bill": None}]}
        self.assertEqual(recoveries_s(status), [1.24, 0.0])

    def test_a_line_that_does_not_hold_is_seen(self):
        text = table([("a", 1, "< 2", True), ("b", 3, "< 2", False), ("c", 4, "", None)])
        self.assertEqual([line.split()[-1] for line in text.splitlines()], ["holds", "yes", "NO", "-"])


if __name__ == "__main__":
    unittest.main()
