"""Tests of alert rules, dashboard and the operators' page: `python3 -m unittest discover scripts`."""

import json
import pathlib
import re
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[1]
MONITORING = ROOT / "k8s" / "monitoring"
PROMTOOL = ROOT / "third_party" / "prometheus" / "promtool"

# What the coordinator serves, with the labels that it has besides `run`.
METRICS = {
    "polo_run_info": {"recipe_identity", "version"}, "polo_run_phase": {"phase"}, "polo_waiting": set(), "polo_generation": set(),
    "polo_step": set(), "polo_planned_steps": set(), "polo_checkpoint_step": set(), "polo_checkpoint_every_steps": set(),
    "polo_loss": set(), "polo_source_loss": {"source"}, "polo_learning_rate": set(), "polo_grad_norm": set(),
    "polo_tokens_per_second": set(), "polo_step_duration_seconds": set(), "polo_data_wait_seconds": set(), "polo_mfu_ratio": set(),
    "polo_eta_seconds": set(), "polo_goodput_ratio": set(), "polo_members": {"role"}, "polo_worker_step": {"worker"},
    "polo_worker_compute_seconds": {"worker"}, "polo_worker_last_heard_seconds": {"worker"}, "polo_worker_slowdown_ratio": {"worker"},
    "polo_incidents_total": set(), "polo_incident_recovery_seconds_total": set(), "polo_incident_cost_seconds_total": {"part"},
    "polo_trained_tokens_total": {"stage", "source"}, "polo_planned_tokens": {"stage", "source"}, "polo_sent_bytes_total": set(),
    "polo_received_bytes_total": set(), "polo_validation_loss": {"source"}, "polo_validation_bits_per_byte": {"source"},
    "polo_validation_baseline_loss": {"source"}, "polo_validation_worse": {"source"}, "polo_validation_alarms_total": set(),
    "polo_skipped_steps_total": set(),
}


def served():
    """Names in the coordinator's source."""
    return set(re.findall(r'"(polo_\w+)"', (ROOT / "coordinator/src/web/metrics.rs").read_text()))


def unknown(query):
    """Metrics and labels of a query that the coordinator does not serve."""
    names = set(re.findall(r"\bpolo_\w+", query))
    labels = {label.strip() for labels in re.findall(r"by \(([^)]*)\)", query) for label in labels.split(",")}
    labels |= {label for matchers in re.findall(r"\{([^{}]*)\}", query) for label in re.findall(r"(\w+)\s*(?:=~|!=|=)", matchers)}
    known = {"run"}.union(*(METRICS.get(name, set()) for name in names))
    return (names - METRICS.keys()) | (labels - known)


def panels():
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


class Metrics(unittest.TestCase):
    def test_the_list_is_that_of_the_coordinator(self):
        self.assertEqual(served(), METRICS.keys())


class Alerts(unittest.TestCase):
    def setUp(self):
        self.text = (MONITORING / "alerts.yaml").read_text()
        self.names = re.findall(r"- alert: (\w+)", self.text)

    def test_each_alert_has_a_section_for_operators_and_leads_to_it(self):
        headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "alerts.md").read_text(), re.M)
        self.assertEqual([name for name in headings if name.startswith("Polo")], self.names)
        self.assertEqual(re.findall(r"runbook_url: (\S+)", self.text), [f"docs/alerts.md#{name.lower()}" for name in self.names])

    def test_each_alert_is_tested_to_fire_and_not_to_fire(self):
        tests = re.findall(r"alertname: (\w+)\n( +exp_alerts)?", (MONITORING / "alerts_test.yaml").read_text())
        self.assertEqual({name for name, fires in tests if fires}, set(self.names))
        self.assertEqual({name for name, fires in tests if not fires}, set(self.names))

    def test_rules_ask_for_metrics_that_exist(self):
        rules = re.sub(r"^\s*(#|annotations:|summary:|description:).*$", "", self.text, flags=re.M)
        self.assertEqual(unknown(rules), set())

    @unittest.skipUnless(PROMTOOL.exists(), "scripts/setup prometheus fetches promtool")
    def test_promtool_has_no_objection(self):
        for arguments in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]):
            done = subprocess.run([PROMTOOL, *arguments], cwd=MONITORING, capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


class Incidents(unittest.TestCase):
    def test_each_cause_that_the_status_names_has_a_section(self):
        code = (ROOT / "coordinator" / "src" / "machine" / "incidents.rs").read_text()
        words = "".join(code.split("impl fmt::Display for ")[1:])
        causes = [re.sub(r"\{[^}]*\}", "…", text) for text in re.findall(r'write!\(\s*f,\s*"([^"]+)"', words)]
        sections = re.findall(r"^## (.+)$", (ROOT / "docs" / "alerts.md").read_text().split("# Incidents\n")[1], re.M)
        self.assertEqual([cause for cause in causes if not any(cause.startswith(section) for section in sections)], [])
        self.assertEqual([section for section in sections if not any(cause.startswith(section) for cause in causes)], [])


class Dashboard(unittest.TestCase):
    def test_panels_ask_for_metrics_that_exist_of_the_chosen_run(self):
        for panel in panels():
            for target in panel["targets"]:
                with self.subTest(panel["title"]):
                    self.assertEqual(unknown(target["expr"]), set())
                    num_metrics = len(re.findall(r"\bpolo_\w+", target["expr"]))
                    self.assertEqual(target["expr"].count('run="$run"'), num_metrics)

    def test_every_metric_of_a_run_is_shown(self):
        shown = set(re.findall(r"\bpolo_\w+", "".join(target["expr"] for panel in panels() for target in panel["targets"])))
        # The variable `run` comes from polo_run_info; the others say what alerts and panels beside them say.
        untold = {"polo_run_info", "polo_checkpoint_every_steps", "polo_worker_step", "polo_validation_worse", "polo_incident_recovery_seconds_total"}
        self.assertEqual(METRICS.keys() - shown, untold)

    def test_panels_do_not_overlap(self):
        taken = set()
        for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            self.assertFalse(taken & cells, panel["title"])
            self.assertLessEqual(at["x"] + at["w"], 24)
            taken |= cells

    @unittest.skipUnless(PROMTOOL.exists(), "scripts/setup prometheus fetches promtool")
    def test_promtool_reads_every_query(self):
        queries = [target["expr"].replace("$__rate_interval", "1m") for panel in panels() for target in panel["targets"]]
        rules = {"groups": [{"name": "dashboard", "rules": [{"record": f"query:{i}", "expr": query} for i, query in enumerate(queries)]}]}
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            json.dump(rules, file)
            file.flush()
            done = subprocess.run([PROMTOOL, "check", "rules", file.name], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


if __name__ == "__main__":
    unittest.main()
