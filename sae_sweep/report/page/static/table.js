"use strict";
/* Tables that sort by a click on a head, and filter as one types. */

/**
 * A table. Columns: {label, title, digits, number: true for numbers, show: value -> node or text}.
 * Rows are arrays of values, of which null sorts last. Options: filter, the hint of a field that filters
 * rows by the words of `text(index)`.
 */
function sortable(caption, columns, rows, options = {}) {
  const body = el("tbody");
  const order = rows.map((_, index) => index);
  let sorted = null;
  let ascending = true;
  const heads = columns.map((column, place) => {
    const button = el("button", { type: "button", title: column.title, onclick: () => sort(place) }, column.label);
    return el("th", { scope: "col", class: column.number ? "number" : null, "aria-sort": "none" }, button);
  });
  const compare = (a, b) => {
    if (a === b) return 0;
    if (a === null || a === undefined) return 1;
    if (b === null || b === undefined) return -1;
    const less = typeof a === "number" && typeof b === "number" ? a < b : String(a).localeCompare(String(b), undefined, { numeric: true }) < 0;
    return (less ? -1 : 1) * (ascending ? 1 : -1);
  };
  function sort(place) {
    ascending = sorted === place ? !ascending : !columns[place].number;
    sorted = place;
    order.sort((a, b) => compare(rows[a][place], rows[b][place]) || a - b);
    heads.forEach((head, at) =>
      head.setAttribute("aria-sort", at === place ? (ascending ? "ascending" : "descending") : "none"));
    fill();
    announce("Sorted by " + columns[place].label + (ascending ? ", ascending" : ", descending"));
  }
  let wanted = "";
  const shownText = (index) => options.text(index).toLowerCase();
  function fill() {
    const shown = order.filter((index) => wanted === "" || wanted.split(/\s+/).every((word) => shownText(index).includes(word)));
    body.replaceChildren(...shown.map((index) => line(index)));
    if (shown.length === 0) body.append(el("tr", {}, el("td", { colspan: columns.length, text: "Nothing matches." })));
  }
  function line(index) {
    const cells = columns.map((column, place) => {
      const value = rows[index][place];
      const content = column.show ? column.show(value, index) : column.number ? number(value, column.digits) : visible(value ?? "–");
      const kind = column.number ? "number" : column.wide ? "wide" : null;
      return place === 0 ? el("th", { scope: "row", class: kind }, content) : el("td", { class: kind }, content);
    });
    return el("tr", {}, ...cells);
  }
  fill();
  const table = el("table", {}, el("caption", { text: caption }), el("thead", {}, el("tr", {}, ...heads)), body);
  const scroll = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, table);
  if (!options.filter) return scroll;
  const input = el("input", {
    type: "search",
    placeholder: options.filter,
    "aria-label": options.filter,
    oninput: (event) => {
      wanted = event.target.value.trim().toLowerCase();
      fill();
    },
  });
  return el("div", {}, el("p", { class: "controls" }, input), scroll);
}
