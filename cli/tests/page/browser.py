"""Chromium without a window, driven by Selenium, and what the tests ask of any page in it."""

import base64
import contextlib
import json
import pathlib
import shutil
import tempfile
import urllib.parse

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

AXE = pathlib.Path(__file__).resolve().parents[3] / "third_party" / "browser" / "axe.min.js"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars"]

# Keeps the last states that a page was told, for whoever compares what it shows with them.
LISTENS = """
window.told = [];
const parse = JSON.parse;
JSON.parse = (text) => {
  const value = parse(text);
  if (value && value.members) window.told = [...window.told.slice(-20), value];
  return value;
};
"""

# Whether a font has a glyph: what it draws differs from what it draws for characters that no font has, and is not blank.
GLYPHS = r"""
const canvas = document.createElement("canvas");
[canvas.width, canvas.height] = [48, 48];
const pen = canvas.getContext("2d", { willReadFrequently: true });
const drawn = (text) => {
  pen.clearRect(0, 0, 48, 48);
  pen.font = `28px ${getComputedStyle(document.body).fontFamily}`;
  pen.fillText(text, 6, 34);
  return pen.getImageData(0, 0, 48, 48).data.join();
};
const without = new Set([drawn(" "), drawn("\u0378"), drawn("\uE000")]);
const letters = new Set(arguments[0].filter((text) => !/[\p{M}\p{Z}\p{Cc}\p{Cf}]/u.test(text)));
return [...letters].filter((letter) => without.has(drawn(letter)));
"""


@contextlib.contextmanager
def chromium():
    """A browser with a profile of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = Options()
        options.binary_location = shutil.which("chromium")
        for flag in [*FLAGS, f"--user-data-dir={profile}", "--window-size=1280,900"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        driver.set_script_timeout(60)
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": LISTENS})
        driver.get("about:blank")
        requested(driver)
        try:
            yield driver
        finally:
            driver.quit()


def look(driver, scheme="light", width=1280, height=900, motion="no-preference"):
    """Sets the colour scheme and the size of the screen."""
    features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": motion}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def picture(driver, path):
    """The whole page, also what is below the screen."""
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True})
    pathlib.Path(path).write_bytes(base64.b64decode(shot["data"]))


def violations(driver):
    """What axe-core has to say, in words."""
    driver.execute_script(AXE.read_text())
    found = driver.execute_async_script(
        "const done = arguments[0]; axe.run(document, { resultTypes: ['violations'] }).then((r) => done(r.violations));")
    return [f"{v['id']}: {v['help']}: {n['target']} {n.get('failureSummary', '')}" for v in found for n in v["nodes"]]


def without_glyph(driver, text):
    """Letters of a text for which no font has a glyph."""
    return driver.execute_script(GLYPHS, list(text))


def console(driver):
    """Warnings and errors since the last call."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def requested(driver):
    """Addresses that were asked for since the last call."""
    messages = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def foreign(driver, url):
    """Of those, what lies elsewhere than the page."""
    home = urllib.parse.urlsplit(url).netloc
    is_elsewhere = lambda to: urllib.parse.urlsplit(to).scheme != "data" and urllib.parse.urlsplit(to).netloc != home
    return [to for to in requested(driver) if is_elsewhere(to)]


def pictures(driver, path):
    """The page in light, in dark and on a phone: FILE.png, FILE-dark.png, FILE-phone.png."""
    stem = pathlib.Path(path).with_suffix("")
    for suffix, scheme, width in [("", "light", 1280), ("-dark", "dark", 1280), ("-phone", "light", 360)]:
        look(driver, scheme, width)
        driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        picture(driver, f"{stem}{suffix}.png")
    look(driver)
