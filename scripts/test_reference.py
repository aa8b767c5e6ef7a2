"""docs/reference is what the programs say of themselves."""
import subprocess
import unittest
from pathlib import Path


class Reference(unittest.TestCase):
    def test_no_page_is_old(self):
        script = Path(__file__).with_name("reference")
        done = subprocess.run([script, "--check"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == "__main__":
    unittest.main()
