// The connection to the coordinator. States come as server-sent events, read with fetch: an EventSource sends no token.

const TOKEN = "polo-operator-token";
/** The server writes at least a comment far more often. */
const MOST_SILENCE_MS = 30_000;
const LEAST_WAIT_MS = 1_000;
const MOST_WAIT_MS = 30_000;

class Refused extends Error {}

/** Answers of the coordinator; addresses are relative, so that the page may lie behind a proxy's path. */
async function ask(path, signal) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { headers, signal, cache: "no-store" });
  if (response.status === 401 || response.status === 403) throw new Refused();
  if (!response.ok) throw new Error(`the coordinator answers with ${response.status}`);
  return response;
}

/** Gives each state of the stream to `take`, until the stream ends or is silent for too long. */
async function follow(take) {
  const silence = new AbortController();
  let alarm;
  const expect = () => {
    clearTimeout(alarm);
    alarm = setTimeout(() => silence.abort(), MOST_SILENCE_MS);
  };
  expect();
  try {
    const response = await ask("api/events", silence.signal);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      expect();
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5));
        if (data.length > 0) take(JSON.parse(data.join("\n")));
      }
    }
  } finally {
    clearTimeout(alarm);
    silence.abort();
  }
}

class Live {
  /** `take` gets states, `takeHistory` what was before them, `changed` hears of the connection, `hasEnded` knows of the run. */
  constructor({ take, takeHistory, changed, hasEnded }) {
    Object.assign(this, { take, takeHistory, changed, hasEnded });
    /** `connecting`, `live`, `lost`, `ended` or `refused`. */
    this.link = "connecting";
    this.heardAt = 0;
    this.retryAt = 0;
    this.wake = () => {};
  }

  set(link) {
    this.link = link;
    this.changed();
  }

  async run() {
    for (let waitMs = LEAST_WAIT_MS; ; waitMs = Math.min(2 * waitMs, MOST_WAIT_MS)) {
      const before = this.heardAt;
      try {
        const history = await ask("api/history", AbortSignal.timeout(MOST_SILENCE_MS));
        this.takeHistory(await history.json());
        await follow((status) => this.heard(status));
      } catch (error) {
        if (error instanceof Refused) {
          this.set("refused");
          await this.woken();
          continue;
        }
      }
      if (this.heardAt > before) waitMs = LEAST_WAIT_MS;
      await this.pause(waitMs);
    }
  }

  heard(status) {
    this.heardAt = Date.now();
    this.take(status);
    if (this.link !== "live") this.set("live");
  }

  /** After the end nobody is expected to answer; until then, somebody is soon. */
  async pause(waitMs) {
    if (this.hasEnded()) {
      this.set("ended");
      return this.woken();
    }
    const jitteredMs = waitMs * (0.75 + Math.random() / 2);
    this.retryAt = Date.now() + jitteredMs;
    this.set("lost");
    return this.woken(jitteredMs);
  }

  /** Waits until somebody calls `wake`, or for so long. */
  woken(ms) {
    return new Promise((resolve) => {
      this.wake = resolve;
      if (ms !== undefined) setTimeout(resolve, ms);
    });
  }
}
