// A table that keeps its rows between two states, and shows the first ones until all are asked for.

const FIRST_ROWS = 50;

class Table {
  constructor(root, name, empty = "") {
    root.append(find("table").content.cloneNode(true));
    const part = (query) => root.querySelector(query);
    [this.scroll, this.caption, this.head, this.body] = [part(".scroll"), part("caption"), part("thead tr"), part("tbody")];
    [this.empty, this.more] = [part(".empty"), part(".more")];
    put(this.empty, empty);
    this.showsAll = false;
    this.name(name);
    this.more.addEventListener("click", () => {
      this.showsAll = !this.showsAll;
      this.show(this.items, this.columns);
    });
  }

  name(name) {
    put(this.caption, name);
    this.scroll.setAttribute("aria-label", `Table: ${name}`);
  }

  /**
   * Columns are `{ head, text(item) }`, with `isNumber`, `isName` (may run in either direction), `tone(item)` (a class) or
   * `fill(cell, item)` in place of `text`. The first one heads its row.
   */
  show(items, columns) {
    [this.items, this.columns] = [items, columns];
    this.scroll.hidden = items.length === 0;
    this.empty.hidden = items.length > 0 || this.empty.textContent === "";
    this.showHead(columns);
    const shown = this.showsAll ? items : items.slice(0, FIRST_ROWS);
    while (this.body.rows.length > shown.length) this.body.lastChild.remove();
    shown.forEach((item, i) => this.fill(this.body.rows[i] ?? this.newRow(columns), columns, item));
    this.more.hidden = items.length <= FIRST_ROWS;
    put(this.more, this.showsAll ? `Show the first ${FIRST_ROWS}` : `Show all ${number(items.length)}`);
  }

  showHead(columns) {
    const heads = columns.map(({ head, isNumber }) => `${head}/${isNumber}`).join("\n");
    if (heads === this.heads) return;
    this.heads = heads;
    this.head.replaceChildren();
    this.body.replaceChildren();
    for (const { head, isNumber } of columns) {
      const cell = add(this.head, "th", isNumber ? "number" : "");
      cell.scope = "col";
      add(cell, "bdi", "", head);
    }
  }

  newRow(columns) {
    const row = add(this.body, "tr");
    columns.forEach(({ isNumber, isName, isWide }, i) => {
      const cell = add(row, i === 0 ? "th" : "td", isNumber ? "number" : isWide ? "wide" : "");
      if (i === 0) cell.scope = "row";
      if (isName) add(cell, "bdi");
    });
    return row;
  }

  fill(row, columns, item) {
    columns.forEach(({ text, fill, tone, isName }, i) => {
      const cell = row.cells[i];
      if (fill) return fill(cell, item);
      put(isName ? cell.firstChild : cell, text(item));
      for (const name of ["good", "warn", "bad"]) cell.classList.toggle(name, tone?.(item) === name);
    });
  }
}
