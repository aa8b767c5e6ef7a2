// Small helpers. What comes from a run becomes text only; nothing here makes HTML of it.

const find = (id) => document.getElementById(id);

/** Sets an element's text, and leaves it alone where it is the same. */
function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A new element with a class and a text, at the end of another. */
function add(parent, tag, name = "", text = "") {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text) element.textContent = text;
  return parent.appendChild(element);
}

const fixed = (digits) => new Intl.NumberFormat("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const formats = { whole: fixed(0), one: fixed(1), two: fixed(2), three: fixed(3), four: fixed(4) };
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

/** A number that may be missing, or not be a number: the server writes those as null. */
const number = (value, format = "whole") => (typeof value === "number" ? formats[format].format(value) : "–");
const compact = (value) => (typeof value === "number" ? short.format(value) : "–");
const percent = (share, format = "one") => (typeof share === "number" ? `${formats[format].format(share * 100)} %` : "–");
const signed = (text) => (/^[-–]/.test(text) ? text.replace("-", "−") : `+${text}`);
const small = (value) => (typeof value === "number" ? value.toExponential(2).replace("e", " e").replace("-", "−") : "–");
const bytes = (value) => (typeof value === "number" ? `${short.format(value / 1e6)} MB` : "–");
const milliseconds = (ms) => (typeof ms !== "number" ? "–" : ms < 10_000 ? `${formats.whole.format(ms)} ms` : duration(ms / 1000));

/** Seconds in the two largest units that are not zero. */
function duration(seconds) {
  if (typeof seconds !== "number") return "–";
  const left = Math.round(seconds);
  const parts = [[Math.floor(left / 86400), "d"], [Math.floor(left / 3600) % 24, "h"], [Math.floor(left / 60) % 60, "min"], [left % 60, "s"]];
  const first = Math.max(0, parts.findIndex(([count]) => count > 0));
  const shown = left === 0 ? [[0, "s"]] : parts.slice(first, first + 2).filter(([count]) => count > 0);
  return shown.map(([count, unit]) => `${count} ${unit}`).join(" ");
}
