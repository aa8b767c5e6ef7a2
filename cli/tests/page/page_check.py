#!/usr/bin/env python3
"""Opens a coordinator's page in Chromium and compares it with `api/status` of the same server.

    page_check.py URL [--token T] [--screenshot FILE]

Exits with 1 and says what is wrong if the page shows something else, complains on the console, asks another server for
anything, lacks glyphs for a name, is wider than a phone, or breaks a rule of accessibility that axe-core knows.
"""

import argparse
import decimal
import json
import sys
import time
import urllib.request

import browser

FIRST_ROWS = 50
PATIENCE_S = 20
STATE_OF_PAGE = """
const text = (id) => document.getElementById(id)?.textContent ?? null;
const table = (id) => {
  const heads = [...document.querySelectorAll(`#${id} thead th`)].map((cell) => cell.textContent);
  const cells = (row) => Object.fromEntries([...row.cells].map((cell, i) => [heads[i], cell.textContent]));
  return [...document.querySelectorAll(`#${id} tbody tr`)].map(cells);
};
const terms = (id) => Object.fromEntries([...document.querySelectorAll(`#${id} > div`)].map((item) => [...item.children].map((part) => part.textContent)).map(([term, value, note]) => [term, { value, note }]));
return {
  told: window.told, run: text("run"), phase: text("phase"), step: text("step"), num_steps: text("num-steps"), stage: text("stage"), link: document.getElementById("link").dataset.link,
  notices: [...document.querySelectorAll("#notices li")].map((item) => item.textContent),
  figures: terms("figures"), details: terms("details"), identity: terms("identity"),
  sources: table("sources"), workers: table("workers"), incidents: table("incidents"),
};
"""


def status_of(url, token=None):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urllib.request.urlopen(urllib.request.Request(url.rstrip("/") + "/api/status", headers=headers), timeout=10) as answer:
        return json.load(answer)


def number(value, digits=0):
    """As the page writes it: Python rounds ties to even, JavaScript away from zero."""
    if value is None:
        return "–"
    return f"{decimal.Decimal(value).quantize(decimal.Decimal(1).scaleb(-digits), decimal.ROUND_HALF_UP):,}"


def expected(status):
    """What the page should show of a state, in the order and under the names of `STATE_OF_PAGE`."""
    step = status["last_step"]
    figures = {"Checkpoint": number(status["checkpoint_step"]) if status["checkpoint_step"] is not None else "none",
               "Incidents": number(len(status["incidents"])), "Loss": number(step and step["loss"], 3)}
    if step and step.get("mfu") is not None:
        figures["MFU"] = f"{number(step['mfu'] * 100, 1)} %"
    return {
        "run": status["run"], "phase": status["phase"], "step": number(status["step"]), "num_steps": number(status["num_steps"]),
        "stage": status["stage"], "figures": figures, "details": {"Generation": number(status["generation"])},
        "identity": {"Recipe": status["recipe_identity"]} | ({"State digest": status["state_digest"]} if status["state_digest"] else {}),
        "sources": sources(status)[:FIRST_ROWS], "workers": workers(status)[:FIRST_ROWS],
        "incidents": [incident(i) for i in reversed(status["incidents"])][:FIRST_ROWS],
    }


def sources(status):
    ledger = {entry["source"]: entry for entry in status["ledger"] if entry["stage"] == status["stage"]}
    names = [*ledger, *(name for name in status["validation"] if name not in ledger)]
    rows = []
    for name in names:
        row = {"Source": name}
        if name in ledger:
            row["Epochs"] = " of ".join(number(ledger[name][key], 2) for key in ("trained_epochs", "planned_epochs"))
        if name in status["validation"]:
            now, first = (status["validation"][name][key] or {} for key in ("last", "baseline"))
            row |= {"Held-out loss": number(now.get("loss"), 3), "Loss at start": number(first.get("loss"), 3),
                    "Bits/byte": number(now.get("bits_per_byte"), 3), "Watch": watch(status["validation"][name])}
        rows.append(row)
    return rows


def watch(standing):
    return "▲ worse than allowed" if standing["worse"] else "✓ watched" if standing["watched"] else "–"


def workers(status):
    is_long = len(status["members"]) > FIRST_ROWS
    place = lambda m: (not (is_long and (m["slowdown"] or m["leaving"])), m["rank"] if m["rank"] is not None else 1e8)
    role = lambda m: (m["role"] or "waiting") + (", asked to leave" if m["leaving"] and m["role"] != "leaving" else "")
    row = lambda m: {"Worker": m["worker_id"], "Rank": number(m["rank"]), "Role": role(m), "State": m["phase"] or "–", "Step": number(m["step"]),
                     "Slowdown": f"▲ {number(m['slowdown'], 1)} ×" if m["slowdown"] else "–", "Host": m["host"], "Process": str(m["pid"])}
    return [row(m) for m in sorted(status["members"], key=place)]


def incident(it):
    bill = [(it["bill"] or {}).get(key) for key in ("detect_ms", "abort_ms", "reform_ms", "transfer_ms", "redo_ms")]
    ms = lambda value: "–" if value is None else f"{value:,} ms"
    parts = dict(zip(("Detect", "Abort", "Re-form", "Transfer", "Redo"), map(ms, bill)))
    return {"Step": number(it["step"]), "What happened": it["cause"], "Worker": it["worker_id"] or "–", **parts, "Sum": ms(sum(b or 0 for b in bill)),
            "Generation": number(it["generation"])}


def differences(shown, status):
    """What of a state the page shows otherwise, in words."""
    found = []

    def compare(place, wanted, got):
        if isinstance(wanted, dict):
            for key, value in wanted.items():
                here = (got or {}).get(key)
                compare(f"{place} {key}", value, here["value"] if isinstance(here, dict) and not isinstance(value, dict) and "value" in here else here)
        elif isinstance(wanted, list):
            if len(wanted) != len(got):
                found.append(f"{place}: {len(got)} rows in place of {len(wanted)}")
            for i, (one, other) in enumerate(zip(wanted, got)):
                compare(f"{place} {i}", one, other)
        elif wanted != got:
            found.append(f"{place}: {got!r} in place of {wanted!r}")

    compare("", expected(status), shown)
    notices = " ".join(shown["notices"])
    # Seconds that run down are left out: they are others by now.
    for text in [status["error"], status["waiting_for"].split(";")[0]]:
        if text not in notices:
            found.append(f"no notice of {text!r}")
    return found


def names_in(status):
    members = [text for m in status["members"] for text in (m["worker_id"], m["host"], m["phase"])]
    ledger = [entry["source"] for entry in status["ledger"]]
    return "".join([status["run"], status["stage"], *members, *ledger, *status["validation"], *(i["cause"] for i in status["incidents"])])


def open_page(driver, url, token=None):
    """Opens the page, with a token where it asks for one, and waits for the first state."""
    driver.get(url)
    wait_for(driver, "return ['live', 'refused'].includes(document.getElementById('link').dataset.link)")
    if token and driver.execute_script("return document.getElementById('link').dataset.link") == "refused":
        driver.find_element("id", "token").send_keys(token + "\n")
    wait_for(driver, "return document.getElementById('link').dataset.link === 'live' && !document.getElementById('all').hidden")


def wait_for(driver, condition):
    until = time.monotonic() + PATIENCE_S
    while not driver.execute_script(condition):
        if time.monotonic() > until:
            raise TimeoutError(f"not within {PATIENCE_S} s: {condition}")
        time.sleep(0.1)


def wrong_state(driver, url, token=None):
    """What differs from the server's state; from a later one, if the run has gone on, that the server has told the page."""
    until, known = time.monotonic() + PATIENCE_S, status_of(url, token)
    while True:
        shown = driver.execute_script(STATE_OF_PAGE)
        later = [state for state in shown["told"] if state["step"] > known["step"] and number(state["step"]) == shown["step"]]
        found = differences(shown, [known, *later][-1])
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.3)


def wrong_looks(driver, url, token=None):
    """What is wrong with how the page looks, in any of its looks."""
    found = [f"no glyph for {letter!r}" for letter in browser.without_glyph(driver, names_in(status_of(url, token)))]
    for scheme, width in [("light", 1280), ("dark", 360)]:
        browser.look(driver, scheme, width)
        found += [f"{scheme}, {width} wide: {problem}" for problem in browser.violations(driver)]
        if driver.execute_script("return document.documentElement.scrollWidth") > width:
            found.append(f"{scheme}: wider than {width}")
    browser.look(driver)
    return found


def check(driver, url, token=None):
    """Everything that is wrong with the page, in words."""
    open_page(driver, url, token)
    found = wrong_state(driver, url, token) + wrong_looks(driver, url, token)
    found += [f"asked {to}" for to in browser.foreign(driver, url)]
    # Without a token the first answer is a refusal, which the browser puts on the console.
    return found + [f"console: {message}" for message in browser.console(driver) if not (token and "401" in message)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--token")
    parser.add_argument("--screenshot", help="PNG of the page; beside it, FILE-dark.png and FILE-phone.png")
    args = parser.parse_args()
    with browser.chromium() as driver:
        try:
            found = check(driver, args.url, args.token)
        except TimeoutError as problem:
            asks = driver.execute_script("return document.getElementById('link')?.dataset.link === 'refused'")
            found = ["the page asks for a token" + (", and refuses this one" if args.token else "") if asks else str(problem)]
        if args.screenshot:
            browser.pictures(driver, args.screenshot)
    print("\n".join(found) if found else "the page shows what the server says", file=sys.stderr)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
