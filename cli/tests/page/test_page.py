"""The page against made-up runs: `third_party/browser/bin/python -m unittest discover cli/tests/page`."""

import sys
import unittest

sys.dont_write_bytecode = True

import browser
import page_check
import statuses
from fixture import Run
from selenium.webdriver.common.keys import Keys


class PageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.driver = cls.enterClassContext(browser.chromium())

    def tearDown(self):
        self.leave()

    def leave(self):
        """Nothing of the page is to be seen in the next test."""
        browser.look(self.driver)
        self.driver.get("about:blank")
        browser.console(self.driver)
        browser.requested(self.driver)

    def show(self, status, token=None):
        run = self.enterContext(Run(status, token))
        if not token:
            page_check.open_page(self.driver, run.url)
        return run

    def js(self, script, *args):
        return self.driver.execute_script(script, *args)

    def text(self, element):
        return self.js("return document.getElementById(arguments[0]).textContent", element)

    def wait(self, condition):
        page_check.wait_for(self.driver, f"return {condition}")

    def wait_link(self, link):
        self.wait(f"document.getElementById('link').dataset.link === '{link}'")

    def wait_step(self, step):
        self.wait(f"document.getElementById('step').textContent === '{step:,}'")


class Scenarios(PageTest):
    def test_every_state_is_shown_as_the_server_tells_it(self):
        for name, scenario in statuses.SCENARIOS.items():
            with self.subTest(name), Run(scenario()) as run:
                found = page_check.check(self.driver, run.url)
                self.leave()
                self.assertEqual(found, [])

    def test_a_letter_without_a_glyph_is_found(self):
        self.show(statuses.healthy())
        self.assertEqual(browser.without_glyph(self.driver, "a語ح\ue123"), ["\ue123"])

    def test_names_run_in_their_own_direction(self):
        self.show(statuses.healthy())
        directions = """return [...document.querySelectorAll('#sources tbody th > *, .legend li > *')]
            .filter((name) => name.textContent === arguments[0]).map((name) => getComputedStyle(name).direction)"""
        self.assertEqual(self.js(directions, "العربية"), 3 * ["rtl"])
        self.assertEqual(self.js(directions, "日本語"), 3 * ["ltr"])

    def test_what_comes_from_a_run_is_never_markup(self):
        evil = "<img src=x onerror=alert(1)>"
        status = statuses.healthy([evil, "en"], [statuses.member(0, worker_id=evil, host=evil, phase=evil)])
        run = self.show({**status, "run": evil, "stage": evil, "waiting_for": evil, "error": evil, "state_digest": evil,
                         "ledger": [{**entry, "stage": evil} for entry in status["ledger"]],
                         "incidents": [statuses.incident(3, evil, evil, [1, 2, 3, 4, 5])]})
        self.assertEqual(page_check.wrong_state(self.driver, run.url), [])
        self.assertEqual(self.js("return document.images.length"), 0)
        self.assertEqual(browser.console(self.driver), [])

    def test_many_workers_are_shown_when_asked_for(self):
        self.show(statuses.many())
        rows = "return document.querySelectorAll('#workers tbody tr').length"
        self.assertEqual(self.js(rows), 50)
        self.assertLess(self.js("return document.querySelectorAll('*').length"), 5000)
        self.js("document.querySelector('#workers .more').click()")
        self.assertEqual(self.js(rows), 1000)
        self.js("document.querySelector('#workers .more').click()")
        self.assertEqual(self.js(rows), 50)

    def test_a_source_among_many_is_found_by_a_part_of_its_name(self):
        self.show(statuses.many())
        self.driver.find_element("id", "find-text").send_keys("UDHR-44")
        names = self.js("return [...document.querySelectorAll('#sources tbody th')].map((name) => name.textContent)")
        self.assertEqual([name[:8] for name in names], [f"udhr-{i}" for i in range(440, 447)])


class Live(PageTest):
    def test_states_that_come_fast_are_not_all_drawn(self):
        run = self.show(statuses.healthy())
        self.js("window.draws = 0; new MutationObserver((changes) => (window.draws += changes.length)).observe(document.getElementById('step'), { childList: true })")
        for step in range(413, 613):
            run.show({**run.status, "step": step})
        self.wait_step(612)
        self.assertLess(self.js("return window.draws"), 50)

    def test_steps_that_come_are_added_to_the_curve(self):
        run = self.show(statuses.healthy())
        run.show({**run.status, "step": 413, "last_step": {**statuses.step(413), "loss": 7.25}})
        self.wait("document.querySelector('#chart-run .at').textContent.includes('413')")
        self.assertIn("7.2500", self.js("return document.querySelector('#chart-run .legend').textContent"))

    def test_a_lost_connection_is_said_and_comes_back(self):
        run = self.show(statuses.healthy())
        with run.closed():
            self.wait_link("lost")
            self.assertIn("Connection lost", self.js("return document.getElementById('notices').textContent"))
            self.assertIn("This is the state of", self.js("return document.getElementById('notices').textContent"))
            self.assertTrue(self.js("return document.getElementById('all').classList.contains('stale')"))
            self.assertEqual(self.text("step"), "412")
            self.assertEqual(browser.violations(self.driver), [])
        self.js("document.getElementById('reconnect').click()")
        self.wait_link("live")
        self.assertFalse(self.js("return document.getElementById('all').classList.contains('stale')"))
        self.assertEqual(self.js("return document.getElementById('notices').childElementCount"), 0)

    def test_it_connects_again_by_itself(self):
        run = self.show(statuses.healthy())
        run.drop()
        self.wait_link("lost")
        run.status = {**run.status, "step": 500}
        self.wait_link("live")
        self.wait_step(500)

    def test_a_stream_that_falls_silent_is_a_lost_connection(self):
        run = self.enterContext(Run(statuses.healthy(), most_silence_ms=1000))
        self.driver.get(run.url)
        self.wait_link("live")
        self.wait_link("lost")
        self.wait_link("live")

    def test_the_end_of_a_run_is_no_lost_connection(self):
        run = self.show(statuses.healthy())
        run.show(statuses.completed())
        self.wait("document.getElementById('phase').textContent === 'completed'")
        with run.closed():
            self.wait_link("ended")
            self.assertIn("The run has ended", self.js("return document.getElementById('notices').textContent"))
            self.assertFalse(self.js("return document.getElementById('all').classList.contains('stale')"))

    def test_screen_readers_hear_of_phases_and_not_of_steps(self):
        run = self.show(statuses.healthy())
        heard = self.text("announcer")
        self.assertEqual(heard, "Connected. Phase: training")
        run.show({**run.status, "step": 420})
        self.wait_step(420)
        self.assertEqual(self.text("announcer"), heard)
        run.show({**run.status, "phase": "waiting", "waiting_for": "4 workers, 3 here; gives up in 598 s"})
        self.wait("document.getElementById('announcer').textContent.includes('4 workers, 3 here')")
        heard = self.text("announcer")
        run.show({**run.status, "waiting_for": "4 workers, 3 here; gives up in 596 s", "step": 421})
        self.wait_step(421)
        self.assertEqual(self.text("announcer"), heard)
        run.show({**statuses.alarm(), "step": 422})
        self.wait_step(422)
        self.assertIn("worse than allowed: العربية", self.text("announcer"))


class Tokens(PageTest):
    def test_a_token_is_asked_for_and_kept_for_the_tab(self):
        run = self.show(statuses.healthy(), token="open/+=sesame")
        self.driver.get(run.url)
        self.wait_link("refused")
        self.assertTrue(self.js("return document.getElementById('all').hidden"))
        self.assertEqual(browser.violations(self.driver), [])
        field = self.driver.find_element("id", "token")
        self.assertEqual(self.driver.switch_to.active_element, field)
        field.send_keys("wrong" + Keys.ENTER)
        self.wait("document.getElementById('sign-in-text').textContent.includes('refused') && document.getElementById('link').dataset.link === 'refused'")
        field.send_keys(run.token + Keys.ENTER)
        self.wait_link("live")
        self.assertTrue(self.js("return document.getElementById('sign-in').hidden"))
        self.assertEqual(self.driver.switch_to.active_element.get_attribute("id"), "main")
        self.assertEqual(page_check.wrong_state(self.driver, run.url, run.token), [])
        self.assertNotIn(run.token, self.js("return document.documentElement.outerHTML + location.href"))
        self.driver.refresh()
        self.wait_link("live")


class Keyboard(PageTest):
    FOCUSABLE = "return [...document.querySelectorAll('a[href], button, input, select, summary, [tabindex=\"0\"]')].filter((e) => e.checkVisibility() && !e.disabled)"

    def test_everything_is_reached_and_shows_that_it_is(self):
        self.show(statuses.many())
        wanted = self.js(self.FOCUSABLE)
        reached, unseen = set(), []
        body = self.driver.find_element("tag name", "body")
        body.send_keys(Keys.TAB)
        for _ in range(2 * len(wanted)):
            focused = self.driver.switch_to.active_element
            if focused.id in reached or focused == body:
                break
            reached.add(focused.id)
            outlined = "const frame = arguments[0].closest('.plot') ?? arguments[0]; return getComputedStyle(frame).outlineStyle"
            if self.js(outlined, focused) == "none":
                unseen.append(focused.get_attribute("outerHTML"))
            focused.send_keys(Keys.TAB)
        self.assertEqual([e.get_attribute("outerHTML") for e in wanted if e.id not in reached], [])
        self.assertEqual(unseen, [])

    def test_arrow_keys_read_a_curve(self):
        run = self.show(statuses.healthy())
        cursor = self.driver.find_element("css selector", "#chart-sources input[type=range]")
        cursor.send_keys(Keys.HOME)
        cursor.send_keys(Keys.ARROW_RIGHT)
        step = run.history["steps"][1]
        loss = step["loss_by_source"]["日本語"]
        self.assertIn(f"日本語 {loss:.4f}", cursor.get_attribute("aria-valuetext"))
        self.assertIn(f"日本語{loss:.4f}", self.js("return document.querySelector('#chart-sources .legend').textContent"))
        self.assertEqual(self.js("return document.querySelector('#chart-sources .at').textContent"), "at step 2")

    def test_a_curve_is_also_a_table(self):
        run = self.show(statuses.healthy())
        self.driver.find_element("css selector", "#chart-run summary").send_keys(Keys.ENTER)
        self.wait("document.querySelectorAll('#chart-run tbody tr').length > 20")
        newest = self.js("return [...document.querySelector('#chart-run tbody tr').cells].map((cell) => cell.textContent)")
        self.assertEqual(newest, ["412", f"{run.status['last_step']['loss']:.4f}"])
        self.assertEqual(browser.violations(self.driver), [])

    def test_curves_are_chosen_and_are_eight_at_most(self):
        self.show(statuses.many())
        names = "return [...document.querySelectorAll('#chart-sources .legend bdi')].map((name) => name.textContent)"
        self.assertEqual(len(self.js(names)), 8)
        boxes = self.driver.find_elements("css selector", "#sources tbody input[type=checkbox]")
        self.assertFalse(boxes[1].is_enabled())
        boxes[0].send_keys(" ")
        self.assertEqual(len(self.js(names)), 7)
        boxes[1].send_keys(" ")
        self.assertEqual(len(self.js(names)), 8)
        self.assertTrue(any(name.startswith("udhr-001") for name in self.js(names)))


if __name__ == "__main__":
    unittest.main()
