// What the page shows of a run, drawn from the newest state at most once a second.

const MOST_VALUES = 400_000;
const ENDINGS = ["completed", "stopped", "failed"];
const PARTS = [["Detect", "detect_ms"], ["Abort", "abort_ms"], ["Re-form", "reform_ms"], ["Transfer", "transfer_ms"], ["Redo", "redo_ms"]];
const MEASURES = {
  loss: ["Loss, nats per token", (step) => step.loss, (value, isExact) => number(value, isExact ? "four" : "two")],
  tokens: ["Tokens per second", (step) => step.tokens_per_second, compact],
  rate: ["Learning rate", (step) => step.learning_rate, small],
  norm: ["Gradient norm", (step) => step.grad_norm, (value) => number(value, "three")],
  workers: ["Workers", (step) => step.num_workers, (value) => number(value)],
};

let status = null;
let steps = [];
let validation = [];
/** The newest evaluation of each source that is in `validation`. */
const evaluatedAt = new Map();
/** The newest loss of each source: a step need not have samples of all. */
const losses = new Map();
/** Sources with a curve, and the numbers of their lines. */
let curves = new Map();
let curvesAreOf = null;
let isDirty = false;
const said = new Map();

const isOver = () => status !== null && ENDINGS.includes(status.phase);
const sum = (values) => values.reduce((total, value) => total + (value ?? 0), 0);
const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;

// ---- What comes in

function takeHistory(history) {
  steps = history.steps ?? [];
  validation = (history.validation ?? []).sort((a, b) => a.step - b.step);
  evaluatedAt.clear();
  for (const { source, step } of validation) evaluatedAt.set(source, step);
  losses.clear();
  steps.forEach(noteLosses);
  isDirty = true;
}

function take(next) {
  status = next;
  const step = status.last_step;
  if (step && step.step > (steps.at(-1)?.step ?? 0)) addStep(step);
  for (const [source, { last }] of Object.entries(status.validation ?? {})) {
    if (!last || last.step <= (evaluatedAt.get(source) ?? -1)) continue;
    validation.push({ source, ...last });
    evaluatedAt.set(source, last.step);
  }
  isDirty = true;
}

function addStep({ step, loss, loss_by_source, tokens_per_second, learning_rate, grad_norm, num_workers }) {
  steps.push({ step, loss, loss_by_source, tokens_per_second, learning_rate, grad_norm, num_workers });
  noteLosses(steps.at(-1));
  thin();
}

function noteLosses(step) {
  for (const [source, loss] of Object.entries(step.loss_by_source ?? {})) losses.set(source, loss);
}

/** Leaves out every other step of a history that has become long; the newest stays. */
function thin() {
  const perStep = Math.max(Object.keys(steps.at(-1).loss_by_source ?? {}).length, 100);
  if (steps.length * perStep > MOST_VALUES) steps = steps.filter((_, i) => (steps.length - 1 - i) % 2 === 0);
}

// ---- The page's parts

const charts = {
  run: new Chart(find("chart-run"), MEASURES.loss[0]),
  sources: new Chart(find("chart-sources"), "Loss by source, nats per token"),
  validation: new Chart(find("chart-validation"), "Held-out loss by source, nats per token"),
};
const tables = {
  sources: new Table(find("sources"), "Sources", "No source is known yet."),
  workers: new Table(find("workers"), "Workers", "No worker is here."),
  incidents: new Table(find("incidents"), "Incidents and what they cost", "Nothing has interrupted the run."),
};
const measure = add(find("chart-run").querySelector(".choice"), "select");
measure.setAttribute("aria-label", "What the curve shows");
for (const [key, [title]] of Object.entries(MEASURES)) add(measure, "option", "", title).value = key;
measure.addEventListener("change", drawNow);
find("find-text").addEventListener("input", drawNow);

function drawNow() {
  isDirty = true;
  draw();
}

function draw() {
  if (!isDirty || status === null) return;
  drawHead();
  // The rest waits until somebody looks; the title is seen all the time.
  if (document.hidden) return;
  isDirty = false;
  const sources = knownSources();
  chooseCurves(sources);
  find("all").hidden = false;
  drawFigures();
  drawCharts();
  drawSources(sources);
  tables.workers.show(sortedMembers(), WORKER_COLUMNS);
  tables.incidents.show([...status.incidents].reverse(), INCIDENT_COLUMNS);
}

function drawHead() {
  const share = status.num_steps > 0 ? status.step / status.num_steps : 0;
  put(find("run"), status.run);
  const phase = find("phase");
  phase.hidden = false;
  phase.dataset.phase = status.phase;
  put(phase, status.phase);
  document.title = `${status.phase === "training" ? percent(share) : status.phase} · ${status.run} · Polo`;
  put(find("step"), number(status.step));
  put(find("num-steps"), number(status.num_steps));
  put(find("stage"), status.stage);
  find("stage-line").hidden = !status.stage;
  put(find("percent"), percent(share));
  find("bar").value = share;
}

/** A list of terms: `[term, text, note]`; those whose text is not known are left out. */
function drawTerms(list, terms) {
  const shown = terms.filter(([, text]) => text !== undefined && text !== null);
  while (list.children.length > shown.length) list.lastChild.remove();
  shown.forEach(([term, text, note = ""], i) => {
    const item = list.children[i] ?? add(list, "div");
    if (!item.firstChild) for (const [tag, name] of [["dt", ""], ["dd", ""], ["dd", "note"]]) add(item, tag, name);
    [term, text, note].forEach((value, place) => put(item.children[place], value));
    item.children[2].hidden = !note;
  });
}

function drawFigures() {
  const { last_step: step, members, incidents, checkpoint_step: checkpoint } = status;
  const numIn = (role) => members.filter((member) => (member.role ?? "waiting") === role).length;
  const others = [[numIn("spare"), "spare"], [numIn("leaving"), "leaving"], [numIn("waiting"), "waiting"]];
  const cost = sum(incidents.map((incident) => incident.recovery_ms));
  const ends = step && new Date(Date.now() + step.eta_seconds * 1000).toLocaleString([], { weekday: "short", hour: "2-digit", minute: "2-digit" });
  drawTerms(find("figures"), [
    ["Loss", step ? number(step.loss, "three") : "–", step?.skipped ? "last step skipped" : step && `gradient norm ${number(step.grad_norm, "two")}`],
    ["Tokens/s", compact(step?.tokens_per_second), step && `${milliseconds(step.step_ms)} a step`],
    ["Time left", isOver() ? undefined : duration(step?.eta_seconds), ends && `until ${ends}`],
    ["Goodput", percent(status.goodput), "of the time in steps"],
    ["MFU", typeof step?.mfu === "number" ? percent(step.mfu) : undefined, "of the devices’ peak"],
    ["Workers", number(numIn("member")), others.filter(([count]) => count > 0).map(([count, word]) => `${count} ${word}`).join(", ") || "training"],
    ["Checkpoint", checkpoint === null ? "none" : number(checkpoint), checkpoint === null ? "yet" : status.step > checkpoint ? `${plural(status.step - checkpoint, "step")} ago` : "up to date"],
    ["Incidents", number(incidents.length), cost > 0 ? `${milliseconds(cost)} in all` : "no time lost"],
  ]);
  drawTerms(find("details"), [
    ["Generation", number(status.generation)],
    ["Learning rate", small(step?.learning_rate)],
    ["Waiting for samples", step && `${milliseconds(step.data_wait_ms)} (${percent(step.data_wait_ms / Math.max(step.step_ms, 1))})`],
    ["Sent a step", step && bytes(step.sent_bytes)],
    ["Received a step", step && bytes(step.received_bytes)],
    ["Held-out alarms so far", Object.keys(status.validation ?? {}).length > 0 ? number(status.num_alarms) : undefined],
  ]);
  drawTerms(find("identity"), [["Recipe", status.recipe_identity || undefined], ["State digest", status.state_digest || undefined]]);
}

function drawCharts() {
  const [title, valueOf, format] = MEASURES[measure.value];
  charts.run.name(title);
  charts.run.show([{ name: title, slot: 1, points: steps.map((step) => [step.step, valueOf(step)]) }], format);
  const lines = (pointsOf) => [...curves].map(([name, slot]) => ({ name, slot, points: pointsOf(name) }));
  const lossOf = (name) => steps.filter((step) => step.loss_by_source && name in step.loss_by_source).map((step) => [step.step, step.loss_by_source[name]]);
  charts.sources.show(lines(lossOf), MEASURES.loss[2]);
  const isInBits = validation.length > 0 && validation.every((point) => typeof point.bits_per_byte === "number");
  const heldOut = (name) => validation.filter(({ source }) => source === name).map((point) => [point.step, isInBits ? point.bits_per_byte : point.loss]);
  find("chart-validation").hidden = validation.length === 0;
  charts.validation.name(isInBits ? "Held-out loss by source, bits per byte" : "Held-out loss by source, nats per token");
  charts.validation.show(lines(heldOut), MEASURES.loss[2]);
}

// ---- Sources

/** What is known of each source: its ledger in this stage, its newest loss, and where it stands on held-out samples. */
function knownSources() {
  const ledger = new Map(status.ledger.filter((entry) => entry.stage === status.stage).map((entry) => [entry.source, entry]));
  const names = new Set([...ledger.keys(), ...Object.keys(status.validation ?? {})]);
  return [...names].map((name) => ({ name, ledger: ledger.get(name), loss: losses.get(name), heldOut: status.validation?.[name] }));
}

/** Sources with most tokens have curves until somebody chooses others, or another stage begins. */
function chooseCurves(sources) {
  if (curvesAreOf === status.stage || sources.length === 0) return;
  curvesAreOf = status.stage;
  const planned = ({ ledger }) => ledger?.num_planned_tokens ?? 0;
  const largest = new Set([...sources].sort((a, b) => planned(b) - planned(a)).slice(0, MOST_LINES));
  curves = new Map(sources.filter((source) => largest.has(source)).map(({ name }, i) => [name, i + 1]));
}

function toggleCurve(name) {
  const slots = Array.from({ length: MOST_LINES }, (_, i) => i + 1);
  if (!curves.delete(name)) curves.set(name, slots.find((slot) => ![...curves.values()].includes(slot)));
  drawNow();
}

function fillCurve(cell, { name }) {
  const box = cell.firstChild ?? add(cell, "input");
  if (box.type !== "checkbox") {
    box.type = "checkbox";
    box.addEventListener("change", () => toggleCurve(box.source));
  }
  box.source = name;
  box.checked = curves.has(name);
  box.disabled = !box.checked && curves.size >= MOST_LINES;
  box.title = box.disabled ? `At most ${MOST_LINES} curves at a time` : "";
  box.setAttribute("aria-label", `Curve of ${name}`);
}

function fillTrained(cell, { ledger }) {
  if (!cell.firstChild) {
    add(cell, "span");
    add(add(cell, "span", "meter"), "span");
  }
  const [text, meter] = cell.children;
  put(text, ledger ? `${compact(ledger.num_trained_tokens)} of ${compact(ledger.num_planned_tokens)}` : "–");
  meter.hidden = !ledger;
  meter.firstChild.style.width = ledger ? `${(100 * ledger.num_trained_tokens) / Math.max(ledger.num_planned_tokens, 1)}%` : "0";
}

const change = ({ baseline, last } = {}) => (baseline && last && last.step !== baseline.step ? last.loss / baseline.loss - 1 : undefined);
const watch = ({ watched, worse } = {}) => (worse ? "▲ worse than allowed" : watched ? "✓ watched" : "–");
const standing = (evaluation, key) => number(evaluation?.[key], "three");

const SOURCE_COLUMNS = [
  { head: "Source", isName: true, text: ({ name }) => name },
  { head: "Curve", fill: fillCurve },
  { head: "Loss", isNumber: true, text: ({ loss }) => number(loss, "three") },
  { head: "Tokens trained", isNumber: true, fill: fillTrained },
  { head: "Epochs", isNumber: true, text: ({ ledger }) => (ledger ? `${number(ledger.trained_epochs, "two")} of ${number(ledger.planned_epochs, "two")}` : "–") },
];
const HELD_OUT_COLUMNS = [
  { head: "Held-out loss", isNumber: true, text: ({ heldOut }) => standing(heldOut?.last, "loss") },
  { head: "Loss at start", isNumber: true, text: ({ heldOut }) => standing(heldOut?.baseline, "loss") },
  { head: "Change", isNumber: true, tone: ({ heldOut }) => (heldOut?.worse ? "bad" : ""), text: ({ heldOut }) => (change(heldOut) === undefined ? "–" : signed(percent(change(heldOut)))) },
  { head: "Bits/byte", isNumber: true, text: ({ heldOut }) => standing(heldOut?.last, "bits_per_byte") },
  { head: "Bits/byte at start", isNumber: true, text: ({ heldOut }) => standing(heldOut?.baseline, "bits_per_byte") },
  { head: "Watch", tone: ({ heldOut }) => (heldOut?.worse ? "bad" : heldOut?.watched ? "good" : ""), text: ({ heldOut }) => watch(heldOut) },
];

function drawSources(sources) {
  find("find").hidden = sources.length <= 20;
  const wanted = find("find-text").value.trim().toLowerCase();
  const found = sources.filter(({ name }) => name.toLowerCase().includes(wanted));
  const columns = sources.some(({ heldOut }) => heldOut) ? [...SOURCE_COLUMNS, ...HELD_OUT_COLUMNS] : SOURCE_COLUMNS;
  tables.sources.show(found, columns);
}

// ---- Workers and incidents

const WORKER_COLUMNS = [
  { head: "Worker", isName: true, text: ({ worker_id }) => worker_id },
  { head: "Rank", isNumber: true, text: ({ rank }) => number(rank) },
  { head: "Role", tone: ({ leaving }) => (leaving ? "warn" : ""), text: ({ role, leaving }) => `${role ?? "waiting"}${leaving && role !== "leaving" ? ", asked to leave" : ""}` },
  { head: "State", text: ({ phase }) => phase || "–" },
  { head: "Step", isNumber: true, text: ({ step }) => number(step) },
  { head: "Step time", isNumber: true, text: ({ compute_ms }) => milliseconds(compute_ms) },
  { head: "Slowdown", isNumber: true, tone: ({ slowdown }) => (slowdown ? "warn" : ""), text: ({ slowdown }) => (slowdown ? `▲ ${number(slowdown, "one")} ×` : "–") },
  { head: "Last heard", isNumber: true, text: (member) => `${number(member.last_heard_ms_ago / 1000, "one")} s ago` },
  { head: "Host", isName: true, text: ({ host }) => host },
  { head: "Process", isNumber: true, text: ({ pid }) => String(pid) },
];

/** By rank; where not all are shown, those that need looking at come first. */
function sortedMembers() {
  const isFirst = (member) => status.members.length > FIRST_ROWS && (member.slowdown || member.leaving);
  const place = (member) => (isFirst(member) ? -1e9 : 0) + (member.rank ?? 1e8);
  return [...status.members].sort((a, b) => place(a) - place(b));
}

const ms = (value) => (typeof value === "number" ? `${number(value)} ms` : "–");
const paid = ({ bill }) => PARTS.map(([, key]) => bill?.[key]);
const INCIDENT_COLUMNS = [
  { head: "Step", text: ({ step }) => number(step) },
  { head: "What happened", isWide: true, isName: true, text: ({ cause }) => cause },
  { head: "Worker", isName: true, text: ({ worker_id }) => worker_id || "–" },
  ...PARTS.map(([head], i) => ({ head, isNumber: true, text: (incident) => ms(paid(incident)[i]) })),
  { head: "Sum", isNumber: true, text: (incident) => ms(sum(paid(incident))) },
  { head: "Over", tone: ({ recovery_ms: time }) => (typeof time === "number" ? "" : "warn"), text: ({ recovery_ms: time }) => (typeof time === "number" ? `after ${milliseconds(time)}` : "○ not yet") },
  { head: "Generation", isNumber: true, text: ({ generation }) => number(generation) },
];

// ---- Notices, the connection, and what is said to screen readers

function notices() {
  const list = [];
  if (live.link === "lost") list.push(["", status ? "Connection lost." : "No answer.", lostText()]);
  if (live.link === "ended") list.push(["", "The run has ended.", `This is the last state that the coordinator showed, ${age()} ago.`]);
  if (status === null) return list;
  if (status.error) list.push(["bad", "▲ The run failed:", status.error]);
  if (status.waiting_for) list.push(["", "○ Waiting for", status.waiting_for]);
  const worse = Object.entries(status.validation ?? {}).filter(([, standing]) => standing.worse);
  for (const [source, { baseline, last }] of worse.slice(0, 3)) {
    list.push(["bad", "▲ Alarm:", `\u2068${source}\u2069 is worse than allowed: held-out loss ${number(last.loss, "three")} at step ${number(last.step)}, ${number(baseline.loss, "three")} at the start`]);
  }
  if (worse.length > 3) list.push(["bad", "▲ Alarm:", `${worse.length - 3} more watched sources are worse than allowed`]);
  return list;
}

const age = () => duration((Date.now() - live.heardAt) / 1000);

function lostText() {
  const left = Math.max(0, live.retryAt - Date.now()) / 1000;
  const next = left >= 1 ? `Trying again in ${duration(left)}.` : "Trying again.";
  return status ? `This is the state of ${age()} ago. ${next}` : next;
}

function drawLink() {
  const { link } = live;
  put(find("link"), { connecting: "Connecting", live: "● Live", lost: "○ Not connected", ended: "■ Ended", refused: "○ Not signed in" }[link]);
  find("link").dataset.link = link;
  find("reconnect").hidden = link !== "lost" && link !== "ended";
  showSignIn(link === "refused");
  for (const part of ["all", "phase", "identity"]) find(part).classList.toggle("stale", link === "lost" || link === "refused");
  const list = find("notices");
  const shown = notices();
  while (list.children.length > shown.length) list.lastChild.remove();
  shown.forEach(([tone, head, text], i) => {
    const item = list.children[i] ?? add(list, "li");
    if (!item.firstChild) for (const tag of ["strong", "span"]) add(item, tag);
    item.className = `notice ${tone}`;
    put(item.firstChild, head);
    put(item.lastChild, text);
  });
  announce();
}

function showSignIn(isWanted) {
  const form = find("sign-in");
  if (form.hidden !== isWanted) return;
  form.hidden = !isWanted;
  find(isWanted ? "token" : "main").focus();
}

/** Says what has changed of phase, waiting, alarms and connection; seconds that run down are not news. */
function announce() {
  const news = [];
  const say = (topic, text, sameAs = text) => {
    if ((said.get(topic) ?? "") !== sameAs && text) news.push(text);
    said.set(topic, sameAs);
  };
  say("link", { lost: "Connection lost", ended: "The run has ended", refused: "An operator token is needed", live: "Connected" }[live.link] ?? "");
  if (status) {
    say("phase", `Phase: ${status.phase}`);
    say("waiting", status.waiting_for && `Waiting for ${status.waiting_for}`, status.waiting_for.replace(/\d+ s\b/g, ""));
    const worse = Object.entries(status.validation ?? {}).filter(([, standing]) => standing.worse).map(([source]) => source);
    say("alarms", worse.length > 0 ? `Alarm: worse than allowed: ${worse.slice(0, 3).join(", ")}` : "", worse.join());
    say("error", status.error);
  }
  if (news.length > 0) put(find("announcer"), news.join(". "));
}

const live = new Live({ take, takeHistory, changed: tick, hasEnded: isOver });

function tick() {
  draw();
  drawLink();
}

find("reconnect").addEventListener("click", () => live.wake());
find("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, find("token").value.trim());
  find("token").value = "";
  put(find("sign-in-text"), "The coordinator refused that token. It wants one with the role operator.");
  live.set("connecting");
  live.wake();
});
document.addEventListener("visibilitychange", tick);
setInterval(tick, 1000);
live.run();
