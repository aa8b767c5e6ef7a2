// A line chart over steps, in SVG. Lines are told apart by number as well as by colour; a range input over the plot is the
// cursor, so that keyboard and screen reader read the same values as the pointer.

const MOST_LINES = 8;
const TABLE_ROWS = 40;

/** The round number that goes about `count` times into a width. */
function pace(width, count) {
  const rough = width / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((times) => times * power).find((size) => size >= rough * 0.999);
}

/** Multiples of `size` from `low` to `high`. */
function multiples(size, low, high) {
  const first = Math.ceil(low / size - 1e-9);
  const count = Math.floor(high / size + 1e-9) - first + 1;
  return Array.from({ length: Math.max(0, count) }, (_, i) => +((first + i) * size).toPrecision(12));
}

/** The last point at or before a step. */
function pointAt(points, step) {
  let [low, high] = [0, points.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] <= step) low = middle + 1;
    else high = middle;
  }
  return points[low - 1];
}

class Chart {
  /** `title` is its heading. */
  constructor(root, title) {
    root.append(find("chart").content.cloneNode(true));
    this.root = root;
    const part = (query) => root.querySelector(query);
    [this.title, this.choice, this.plot, this.svg] = [part("h3"), part(".choice"), part(".plot"), part("svg")];
    [this.cursor, this.at, this.legend, this.empty] = [part("input"), part(".at"), part(".legend"), part(".empty")];
    this.details = part("details");
    this.table = new Table(part(".as-table"), "");
    this.name(title);
    this.lines = [];
    this.format = String;
    this.moved = false;
    this.cursor.addEventListener("input", () => this.move(this.steps[this.cursor.value]));
    this.cursor.addEventListener("blur", () => this.move());
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => this.move());
    this.details.addEventListener("toggle", () => this.tabulate());
    new ResizeObserver(() => this.paint()).observe(this.plot);
  }

  name(title) {
    put(this.title, title);
    this.cursor.setAttribute("aria-label", `Step to read in the chart ${title}`);
    this.table.name(title);
  }

  /** Shows `lines`, each `{ name, slot, points: [[step, value], ...] }` with ascending steps; `format` makes text of a value. */
  show(lines, format) {
    this.lines = lines.filter((line) => line.points.length > 0).slice(0, MOST_LINES);
    this.format = format;
    this.steps = [...new Set(this.lines.flatMap((line) => line.points.map(([step]) => step)))].sort((a, b) => a - b);
    const isEmpty = this.steps.length === 0;
    for (const part of [this.plot, this.at, this.legend, this.details]) part.hidden = isEmpty;
    this.empty.hidden = !isEmpty;
    this.cursor.max = Math.max(0, this.steps.length - 1);
    this.paint();
    this.tabulate();
  }

  move(step) {
    this.moved = step !== undefined;
    this.chosen = step;
    this.read();
  }

  point(event) {
    if (!this.scale) return;
    const step = this.scale.stepAt(event.clientX - this.plot.getBoundingClientRect().left);
    const after = this.steps.findIndex((other) => other >= step);
    const nearest = after < 0 ? this.steps.at(-1) : after > 0 && step - this.steps[after - 1] < this.steps[after] - step ? this.steps[after - 1] : this.steps[after];
    this.move(nearest);
  }

  paint() {
    const [width, height] = [this.plot.clientWidth, this.plot.clientHeight];
    this.svg.replaceChildren();
    if (!width || this.steps === undefined || this.steps.length === 0) return;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.scale = this.scaled(width, height);
    this.drawAxes(width);
    for (const line of this.lines) this.draw("path", { class: `line s${line.slot}`, d: this.path(line.points) });
    for (const line of this.lines) this.drawEnds(line);
    if (this.lines.length > 1) this.drawTags();
    this.overlay = this.draw("g", {});
    this.read();
  }

  scaled(width, height) {
    const values = this.lines.flatMap((line) => line.points.map(([, value]) => value)).filter(Number.isFinite);
    const [least, most] = values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
    const flat = (Math.abs(least) || 1) / 10;
    const [from, to] = least > most ? [0, 1] : least === most ? [least - flat, most + flat] : [least, most];
    const size = pace(to - from, Math.max(2, Math.floor(height / 50)));
    const [low, high] = [Math.floor(from / size) * size, Math.ceil(to / size) * size];
    const levels = multiples(size, low, high);
    const labels = levels.map((level) => this.format(level));
    const [left, right, top, bottom] = [Math.max(...labels.map((label) => label.length), 4) * 7 + 10, 22, 10, 24];
    const [first, last] = [this.steps[0], Math.max(this.steps.at(-1), this.steps[0] + 1)];
    const [across, down] = [width - left - right, height - top - bottom];
    return {
      x: (step) => left + ((step - first) / (last - first)) * across,
      y: (value) => top + (1 - (value - low) / (high - low)) * down,
      stepAt: (x) => first + ((x - left) / across) * (last - first),
      levels, labels, left, top, first, last, end: width - right, base: height - bottom,
    };
  }

  draw(tag, attributes, text, parent = this.svg) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return parent.appendChild(element);
  }

  drawAxes(width) {
    const { x, y, levels, labels, left, first, last, end, base } = this.scale;
    levels.forEach((level, i) => {
      this.draw("line", { class: "grid", x1: left, x2: end, y1: y(level), y2: y(level) });
      this.draw("text", { x: left - 8, y: y(level) + 4, "text-anchor": "end" }, labels[i]);
    });
    const marks = multiples(pace(last - first, Math.max(2, Math.floor(width / 85))), first, last).filter(Number.isInteger);
    for (const step of marks) this.draw("text", { x: x(step), y: base + 18, "text-anchor": "middle" }, compact(step));
    this.draw("text", { x: left - 8, y: base + 18, "text-anchor": "end" }, "step");
  }

  /** Where a value is no number, the line is broken. */
  path(points) {
    const { x, y } = this.scale;
    let pen = "M";
    return points.map(([step, value]) => {
      if (!Number.isFinite(value)) return (pen = "M") && "";
      const piece = `${pen}${x(step).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
      return piece;
    }).join("");
  }

  drawEnds({ slot, points }) {
    const shown = points.length <= 30 ? points : points.slice(-1);
    for (const [step, value] of shown) this.dot(step, value, slot, this.svg, points.length <= 30 ? 2.5 : 3);
  }

  dot(step, value, slot, parent, r = 4) {
    const { x, y } = this.scale;
    if (Number.isFinite(value)) this.draw("circle", { class: `dot s${slot}`, cx: x(step), cy: y(value), r }, undefined, parent);
  }

  /** The lines' numbers at their ends, pushed apart where they would overlap. */
  drawTags() {
    const { y, end } = this.scale;
    const tags = this.lines.map(({ slot, points }) => ({ slot, at: y(points.at(-1)[1]) + 4 })).filter(({ at }) => Number.isFinite(at));
    tags.sort((a, b) => a.at - b.at);
    for (let round = 0; round < 20; round++) {
      for (const [i, above] of tags.slice(0, -1).entries()) {
        const overlap = Math.max(0, above.at + 12 - tags[i + 1].at);
        above.at -= overlap / 2;
        tags[i + 1].at += overlap / 2;
      }
    }
    for (const { slot, at } of tags) this.draw("text", { class: `tag s${slot}`, x: end + 8, y: at }, slot);
  }

  /** Writes the values at the cursor, or the last ones. */
  read() {
    if (!this.overlay) return;
    const step = this.chosen ?? this.steps.at(-1);
    const read = this.lines.map((line) => ({ ...line, point: pointAt(line.points, step) }));
    put(this.at, this.moved ? `at step ${number(step)}` : `newest, step ${number(step)}`);
    const text = ({ point }) => (point && Number.isFinite(point[1]) ? this.format(point[1], true) : "–");
    this.drawLegend(read, text);
    this.cursor.value = this.steps.findLastIndex((other) => other <= step);
    this.cursor.setAttribute("aria-valuetext", `step ${step}: ${read.map((line) => `${line.name} ${text(line)}`).join(", ")}`);
    this.overlay.replaceChildren();
    if (!this.moved) return;
    const { x, top, base } = this.scale;
    this.draw("line", { class: "cursor", x1: x(step), x2: x(step), y1: top, y2: base }, undefined, this.overlay);
    for (const { point, slot } of read) if (point) this.dot(point[0], point[1], slot, this.overlay);
  }

  drawLegend(read, text) {
    while (this.legend.children.length > read.length) this.legend.lastChild.remove();
    read.forEach((line, i) => {
      const item = this.legend.children[i] ?? this.newLegendItem();
      const [mark, name, value] = item.children;
      item.className = `s${line.slot}`;
      put(mark, read.length > 1 ? String(line.slot) : "");
      put(name, line.name);
      name.title = line.name;
      put(value, text(line));
    });
  }

  newLegendItem() {
    const item = add(this.legend, "li");
    for (const tag of ["b", "bdi", "span"]) add(item, tag);
    return item;
  }

  /** The same in a table, of evenly chosen steps, while it is open. */
  tabulate() {
    if (!this.details.open || !this.steps?.length) return;
    const pace = Math.ceil(this.steps.length / TABLE_ROWS);
    const steps = this.steps.filter((_, i) => (this.steps.length - 1 - i) % pace === 0);
    const exact = (line, step) => line.points.find((point) => point[0] === step)?.[1];
    const column = (line) => ({ head: line.name, isNumber: true, text: (step) => (Number.isFinite(exact(line, step)) ? this.format(exact(line, step), true) : "–") });
    this.table.show(steps.reverse(), [{ head: "Step", text: (step) => number(step) }, ...this.lines.map(column)]);
  }
}
