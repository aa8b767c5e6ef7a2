#!/usr/bin/env python3
"""A server that shows the page and made-up states, as the coordinator would: `fixture.py [SCENARIO] [--port N] [--token T]`."""

import argparse
import base64
import contextlib
import hashlib
import http.server
import json
import pathlib
import queue
import threading

import statuses

PAGE = pathlib.Path(__file__).resolve().parents[3] / "coordinator" / "page"
SCRIPTS = ["dom.js", "table.js", "chart.js", "live.js", "page.js"]


def assembled(most_silence_ms):
    """The page and its Content-Security-Policy; the page gives up a stream that is silent for so long."""
    style = (PAGE / "style.css").read_text()
    script = "".join((PAGE / name).read_text() for name in SCRIPTS).replace("MOST_SILENCE_MS = 30_000", f"MOST_SILENCE_MS = {most_silence_ms}")
    page = (PAGE / "index.html").read_text().replace("{{style}}", style).replace("{{script}}", script)
    hashed = lambda text: "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
    policy = f"default-src 'none'; script-src {hashed(script)}; style-src {hashed(style)}; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return page, policy


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        run = self.server.run
        if self.path == "/":
            page, policy = assembled(run.most_silence_ms)
            return self.answer(200, "text/html; charset=utf-8", page, {"Content-Security-Policy": policy})
        if run.token and self.headers.get("Authorization") != f"Bearer {run.token}":
            return self.answer(401, "application/json", '{"error": "a token is needed"}')
        if self.path == "/api/events":
            return self.stream(run)
        body = {"/api/status": lambda: run.status, "/api/history": lambda: run.history}.get(self.path)
        if body is None:
            return self.answer(404, "text/plain", "nothing is here")
        self.answer(200, "application/json", json.dumps(body()))

    def answer(self, code, kind, body, headers={}):
        self.send_response(code)
        for name, value in {"Content-Type": kind, "Content-Length": len(body.encode()), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body.encode())

    def stream(self, run):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        states = run.subscribe()
        while True:
            try:
                state = states.get(timeout=5)
            except queue.Empty:
                state = ": still here"
            if state is None:
                return
            try:
                self.wfile.write((state + "\n\n").encode())
            except OSError:
                return

    def log_message(self, *_):
        pass


class Run:
    """A made-up run behind a server of its own; a context."""

    def __init__(self, status, token=None, port=0, most_silence_ms=30_000):
        self.status, self.history, self.token = status, statuses.history(status), token
        self.port, self.most_silence_ms = port, most_silence_ms
        self.streams, self.lock = [], threading.Lock()

    def __enter__(self):
        self.open()
        return self

    def __exit__(self, *_):
        self.close()

    def open(self):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.run = self
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.drop()
        self.server.shutdown()
        self.server.server_close()

    @contextlib.contextmanager
    def closed(self):
        """While the coordinator is away."""
        self.close()
        yield
        self.open()

    def subscribe(self):
        states = queue.Queue()
        with self.lock:
            self.streams.append(states)
        states.put(self.event())
        return states

    def event(self):
        return "data: " + json.dumps(self.status)

    def show(self, status):
        """The run has come to another state."""
        self.status = status
        with self.lock:
            for states in self.streams:
                states.put(self.event())

    def drop(self):
        """Ends all streams."""
        with self.lock:
            for states in self.streams:
                states.put(None)
            self.streams = []


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", nargs="?", default="healthy", choices=statuses.SCENARIOS)
    parser.add_argument("--port", type=int, default=8800)
    parser.add_argument("--token")
    args = parser.parse_args()
    with Run(statuses.SCENARIOS[args.scenario](), args.token, args.port) as run:
        print(run.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
