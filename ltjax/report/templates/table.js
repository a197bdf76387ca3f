// Sorts, searches and filters the tables of the page. A table of thousands of rows holds 100 of them at a time.
"use strict";
for (const data of document.querySelectorAll("script[type='application/json'][data-table]")) {
  const {columns, rows} = JSON.parse(data.textContent);
  const table = document.getElementById(data.dataset.table), body = table.tBodies[0];
  const tools = document.getElementById(`${table.id}-tools`), status = tools.querySelector("output");
  const search = tools.querySelector("input"), filter = tools.querySelector("select");
  const more = document.getElementById(`${table.id}-more`), all = document.getElementById(`${table.id}-all`);
  const page = 100, heads = [...table.tHead.rows[0].cells];
  const texts = columns.map(({kind}) => kind === "name" || kind === "text");
  const words = rows.map(row => row[columns.findIndex(({kind}) => kind === "name")].toLowerCase());
  const collator = new Intl.Collator(undefined, {numeric: true});
  let order = rows.map((_, k) => k), shown = page, sorted = null;

  function text(value, kind) {
    if (value === null) return "–";
    if (kind === "name" || kind === "text") return value;
    if (kind === "worded") return value[1];
    if (kind === "count") return value.toLocaleString("en-US");
    if (kind === "percent") return (100 * value).toFixed(1);
    if (kind === "points") return (value < 0 ? "" : "+") + (100 * value).toFixed(1);
    return String(Number(value.toPrecision(4)));
  }

  function cell(value, {kind, wide, bar}) {
    const found = document.createElement("td");
    if (wide) found.classList.add("wide");
    if (kind === "name" || kind === "text") found.classList.add("left");
    if (["many", "medium", "few"].includes(value)) found.classList.add(value);
    if (bar && value !== null) {
      found.classList.add("bar");
      found.style.setProperty("--part", `${100 * value}%`);
    }
    // A name may be written from right to left, and must not turn what stands beside it.
    const target = kind === "name" ? found.appendChild(document.createElement("bdi")) : found;
    target.textContent = text(value, kind);
    return found;
  }

  function draw() {
    const wanted = search.value.toLowerCase().trim(), group = filter ? filter.value : "";
    const k = columns.findIndex(({key}) => key === "group");
    const found = order.filter(row => (!wanted || words[row].includes(wanted)) && (!group || rows[row][k] === group));
    const lines = found.slice(0, shown).map(row => {
      const line = document.createElement("tr");
      line.append(...rows[row].map((value, column) => cell(value, columns[column])));
      return line;
    });
    body.replaceChildren(...lines);
    status.textContent = `${lines.length.toLocaleString("en-US")} of ${found.length.toLocaleString("en-US")} rows`;
    more.hidden = all.hidden = lines.length === found.length;
  }

  function sort(column) {
    const down = sorted && sorted.column === column ? !sorted.down : !texts[column];
    const sign = down ? -1 : 1;
    // What has no value comes last in both directions.
    order = rows.map((_, k) => k).sort((a, b) => {
      const [x, y] = [rows[a][column], rows[b][column]];
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      if (texts[column]) return sign * collator.compare(x, y) || a - b;
      return sign * (columns[column].kind === "worded" ? x[0] - y[0] : x - y) || a - b;
    });
    sorted = {column, down};
    const way = down ? "descending" : "ascending";
    heads.forEach((head, k) => head.setAttribute("aria-sort", k === column ? way : "none"));
    shown = page;
    draw();
  }

  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => sort(column)));
  search.addEventListener("input", () => { shown = page; draw(); });
  if (filter) filter.addEventListener("change", () => { shown = page; draw(); });
  more.addEventListener("click", () => { shown += page; draw(); });
  all.addEventListener("click", () => { shown = rows.length; draw(); });
  tools.hidden = false;
  draw();
}
