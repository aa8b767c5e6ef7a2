"""Tests of what the demos compute: `python3 -m unittest discover scripts`."""

import importlib.machinery
import importlib.util
import json
import pathlib
import sys
import tempfile
import unittest
import xml.etree.ElementTree

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER))


def script(name):
    """A script without a suffix, as a module."""
    loader = importlib.machinery.SourceFileLoader(name.replace("-", "_"), str(FOLDER / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


sys.dont_write_bytecode = True  # Scripts have no suffix, and their caches would lie beside them.
charts, demo, corpus = script("charts.py"), script("demo-marco"), script("libreoffice-corpus")


class Verdict(unittest.TestCase):
    def setUp(self):
        of = lambda source: {"source": source, "num_tokens": 64}
        groups = [{"sources": [of("en"), of("de")]}]
        self.plan = {"stages": [{"stage": "one", "groups": groups}], "sources": [of("en"), of("de")]}
        self.verified = {"tokens": [{"stage": "one", "source": s, "num_trained_tokens": 64} for s in ("en", "de")]}
        self.run = {"num_incidents": 1, "validation": {s: self.evaluated(4.0, 2.0) for s in ("en", "de")}}

    @staticmethod
    def evaluated(before, after):
        return {"baseline": {"bits_per_byte": before}, "last": {"bits_per_byte": after}}

    def verdict(self):
        rows = demo.results(self.plan, self.verified, self.run["validation"])
        return list(demo.verdict(rows, self.plan, self.verified, self.run))

    def test_a_run_as_planned_passes(self):
        self.assertEqual(self.verdict(), [])

    def test_tokens_that_were_not_trained_are_found(self):
        self.verified["tokens"][1]["num_trained_tokens"] = 63
        self.assertEqual(self.verdict(), ["planned and trained tokens differ"])

    def test_a_source_that_was_not_trained_at_all_is_found(self):
        del self.verified["tokens"][1]
        self.assertEqual(self.verdict(), ["planned and trained tokens differ"])

    def test_a_source_that_got_worse_is_named(self):
        for after in (4.5, 4.0, None):
            self.run["validation"]["de"] = self.evaluated(4.0, after)
            self.assertEqual(self.verdict(), ["de is no better than it was at the start"])

    def test_a_run_without_a_death_shows_nothing(self):
        self.run["num_incidents"] = 0
        self.assertEqual(self.verdict(), ["no worker was killed"])


class Corpus(unittest.TestCase):
    def write(self, page, body):
        path = self.folder / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'<p>menu</p><div id="DisplayArea">{body}</div><div id="SearchFrame"></div><p>debug</p>', "utf-8")
        return path

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = pathlib.Path(scratch.name)

    def test_a_page_is_its_headings_and_paragraphs_without_code_and_menus(self):
        body = '<h1 id="a"><a name="x"></a>Tom &amp;\n Jerry</h1><p class="b">one <em>two</em></p><pre><p>x</p></pre><p> </p>'
        self.assertEqual(corpus.paragraphs(self.write("p.html", body)), ["Tom & Jerry", "one two", ""])

    def test_only_pages_with_equally_many_paragraphs_correspond(self):
        self.assertEqual(corpus.corresponding(["eins", "B", ""], ["one", "B", "three"]), [("one", "eins")])
        self.assertEqual(corpus.corresponding(["eins"], ["one", "two"]), [])

    def test_what_is_still_english_is_left_out(self):
        english = {"p": ["one", "two"], "q": ["three"]}
        row = corpus.write_language(self.folder, "de", {"p": ["eins", "two"], "q": ["three"]}, english)
        self.assertEqual(row, ("de", 1, 4))


class Tokenizer(unittest.TestCase):
    def test_merges_make_the_tokens_that_are_left_and_no_others(self):
        letters = [chr(0x100 + i) for i in range(256)]
        made = [letters[i] + letters[i + 1] for i in range(20)]
        vocab = {token: i for i, token in enumerate(letters + made)}
        ends = [{"id": 276, "content": "<|endoftext|>"}, {"id": 277, "content": "<|im_start|>"}]
        whole = {"added_tokens": ends, "model": {"vocab": vocab, "merges": [list(token) for token in made]}}
        with tempfile.TemporaryDirectory() as folder:
            source, target = pathlib.Path(folder, "whole.json"), pathlib.Path(folder, "cut.json")
            source.write_text(json.dumps(whole), "utf-8")
            demo.cut_tokenizer(source, target, 260)
            cut = json.loads(target.read_text("utf-8"))
        self.assertEqual(cut["model"]["merges"], [list(token) for token in made[:3]])
        self.assertEqual(list(cut["model"]["vocab"].values()), list(range(259)))
        self.assertEqual(cut["added_tokens"], [{"id": 259, "content": "<|endoftext|>"}])


class Charts(unittest.TestCase):
    def test_ticks_are_round_and_reach_beyond_both_ends(self):
        self.assertEqual(charts.ticks(0, 300, 4), [0, 100, 200, 300])
        self.assertEqual(charts.ticks(2.1, 9.3, 4), [2, 4, 6, 8, 10])
        self.assertEqual(charts.log_ticks(1.9, 13), [1.5, 2, 3, 4, 6, 8, 10, 15])
        self.assertEqual(charts.log_ticks(2, 8), [2, 3, 4, 6, 8])

    def test_labels_part_and_stay_within(self):
        self.assertEqual(charts.spread([10, 50, 10], 4, 0, 100), [8, 50, 12])
        self.assertEqual(charts.spread([99, 98], 4, 0, 100), [100, 96])
        self.assertEqual(charts.spread([], 4, 0, 100), [])

    def test_a_picture_is_xml_with_a_line_for_each_series(self):
        series = [charts.Series("a < b", [(0, 8.0), (10, 2.0)]), charts.Series("c", [(0, 4.0), (10, 3.0)])]
        panel = charts.Panel("title", "unit", 50, 50, 300, 200, series, marks=[(5, "here")], logarithmic=True)
        root = xml.etree.ElementTree.fromstring(charts.draw("t", "s", [panel], 400, 300))
        lines = root.findall("{http://www.w3.org/2000/svg}polyline")
        self.assertEqual([one.get("points") for one in lines], ["50.0,50.0 350.0,250.0", "50.0,150.0 350.0,191.5"])


if __name__ == "__main__":
    unittest.main()
