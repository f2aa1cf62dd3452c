"use strict";
/* The matching matrix as a table whose cells open their pair, and the view of a pair. */

const NUMBERS_UP_TO = 24;

/** Black or white, whichever has more contrast on a background (WCAG's relative luminance). */
function inkOn(colour) {
  const { r, g, b } = d3.rgb(colour);
  const [red, green, blue] = [r, g, b].map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
  const luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  return 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 ? "#fff" : "#000";
}

/**
 * A grid of shares. `places` are runs, `labels` their heads, `share(i, j)` a number or null;
 * arrow keys move between cells, Enter or a click opens one.
 */
function grid(caption, places, labels, share, open) {
  const dense = places.length > NUMBERS_UP_TO;
  const cells = places.map((_, i) => places.map((__, j) => gridCell(share(i, j), labels[i], labels[j], dense)));
  const rows = cells.map((row, i) => el("tr", {}, el("th", { scope: "row", title: labels[i] }, labels[i]), ...row));
  const heads = labels.map((label) => el("th", { scope: "col", title: label }, el("span", {}, label)));
  const first = cells.flat().find((cell) => cell.dataset.share);
  if (first) first.tabIndex = 0;
  const place = new Map(cells.flatMap((row, i) => row.map((cell, j) => [cell, [i, j]])));
  const opened = (cell) => cell?.dataset.share && open(places[place.get(cell)[0]], places[place.get(cell)[1]]);
  const table = el("table", {
    class: "grid" + (dense ? " dense" : ""), role: "grid",
    onclick: (event) => opened(event.target.closest("td")),
    onkeydown: (event) => {
      const cell = event.target.closest("td");
      if (!cell) return;
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); opened(cell); return; }
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      let [i, j] = place.get(cell);
      do { i += step[0]; j += step[1]; } while (cells[i]?.[j] && !cells[i][j].dataset.share);
      const next = cells[i]?.[j];
      if (next) { cell.tabIndex = -1; next.tabIndex = 0; next.focus(); }
    },
  }, el("caption", { text: caption }), el("thead", {}, el("tr", {}, el("td"), ...heads)), el("tbody", {}, ...rows));
  return el("div", { class: "scroll" }, table);
}

function gridCell(share, row, column, dense) {
  if (share === null) return el("td", { class: "none", role: "gridcell" });
  const colour = d3.interpolateViridis(share);
  const said = percent(share) + " of the features of " + row + " are found in " + column;
  return el("td", {
    role: "gridcell", tabindex: -1, title: said, "aria-label": said, "data-share": share,
    style: "background:" + colour + ";color:" + inkOn(colour),
  }, dense ? "" : (100 * share).toFixed(0));
}

/** Mark of a run that still matches its start: a drawn dictionary, or the SAE that it is fine-tuned from. */
const startMark = (core, run, share) => (share > core.answer.limit ? (core.table.starts[run] ? " ‡" : " *") : "");

/** What those marks mean, where there are some. */
function startNotes(core, shares, runs) {
  const marks = new Set(runs.map((run, at) => startMark(core, run, shares[at])));
  const limit = "more than " + percent(core.answer.limit, 0) + " of the features still match the ";
  return [
    marks.has(" *") ? "* undertrained: " + limit + "dictionary that the run started from." : null,
    marks.has(" ‡") ? "‡ fine-tuned: " + limit + "SAE that the run started from (init.sae); what such runs share may come from there." : null,
  ].filter(Boolean);
}

function scaleBar() {
  const stops = d3.range(0, 1.01, 0.1).map((at) => d3.interpolateViridis(at)).join(",");
  return el("span", { class: "scale" }, "0 %", el("i", { style: "background:linear-gradient(90deg," + stops + ")", "aria-hidden": "true" }), "100 %");
}

function matrixSection(core, openPair) {
  const { runs, order, ratios, starts } = core.matching;
  const columns = core.table.columns.filter((column) => !("digits" in column));
  const host = el("div");
  const valueOf = (place, column) => core.table.rows[place][core.table.columns.indexOf(column)];
  const orders = [["similar", "what they share"], ["plan", "the plan"], ...columns.map((column) => [column.id, column.label])];
  function fill(way) {
    let shown = way === "similar" ? order : d3.range(runs.length);
    const column = columns.find((one) => one.id === way);
    if (column) shown = d3.sort(shown, (at) => valueOf(runs[at], column));
    const labels = shown.map((at) => visible(core.runs.shorts[runs[at]]) + (core.matching.mixed[at] ? " †" : "") + startMark(core, runs[at], starts[at]));
    host.replaceChildren(grid("Share of the row's features (%) that have a match in the column's SAE", shown.map((at) => runs[at]), labels,
      (i, j) => ratios[shown[i]][shown[j]], openPair));
  }
  fill("similar");
  const notes = [
    "Choose a cell to see the pair: a click, or arrow keys and Enter. ",
    ...startNotes(core, starts, runs).map((text) => text + " "),
    core.matching.mixed.some(Boolean) ? "† part of the run was trained with other numerics. " : "",
  ];
  return [el("p", { class: "controls" }, select("Ordered by", orders, fill), scaleBar()), host, el("p", { class: "note" }, ...notes)];
}

function layerSections(core, openPair) {
  const { runs, ratios } = core.matching;
  const at = new Map(runs.map((run, place) => [run, place]));
  return core.layers.flatMap((group) => [
    grid("Layers alone differ" + (group.label ? ": " + visible(group.label) : "") + ". Share of the row's features (%) found in the column's layer", group.runs,
      group.layers.map((layer) => "L" + layer), (i, j) => ratios[at.get(group.runs[i])][at.get(group.runs[j])], openPair),
  ]);
}

/** What the two SAEs of a pair share: histograms, threshold curve, examples of both directions. */
async function pairView(core, a, b) {
  const [block, list, texts] = [await pairsBlock(), await features(), await words()];
  const sides = [[a, b], [b, a]].map(([from, to]) => ({ from, to, row: block.rowOf(from, to) })).filter((side) => side.row !== undefined);
  const label = (run) => visible(core.runs.shorts[run]);
  const counts = sides.map((side) => block.columns.histogram.subarray(side.row * block.bins, (side.row + 1) * block.bins));
  const points = counts.flatMap((bins, at) => histogramPoints(bins, label(sides[at].from) + " in " + label(sides[at].to)));
  const colour = { type: "categorical", domain: [...new Set(points.map((point) => point.side))], range: SERIES, legend: true };
  const x = { label: "best cosine in the other SAE", labelAnchor: "center", labelArrow: "none", domain: [0, 1] };
  const rule = Plot.ruleX([core.answer.threshold], { stroke: "var(--muted)", strokeDasharray: "3,3" });
  const histogram = chart("Histogram of best cosines", () => ({
    height: 260, marginBottom: 38, x, color: colour, y: { label: "features per bin of 0.01", labelArrow: "none", grid: true },
    marks: [rule, Plot.lineY(points, { x: "from", y: "count", stroke: "side", curve: "step-after" })],
  }), "How near each feature's nearest is. Dashed: the threshold.");
  const curve = chart("Share of features with a match against the threshold", () => ({
    height: 260, marginBottom: 38, color: colour, x: { ...x, label: "cosine threshold" },
    y: { label: "features that have a match (%)", labelArrow: "none", grid: true, domain: [0, 100] },
    marks: [rule, Plot.lineY(points, { x: "from", y: "above", stroke: "side" })],
  }), "What the result would be at another threshold.");
  return [el("div", { class: "two" }, histogram, curve), el("div", { class: "two" }, ...sides.map((side) => pairExamples(block, side, label, (run, feature) => firstToken(list, texts, run, feature))))];
}

/** Count of each bin, and the share (%) of the features at or above its lower edge; the end closes the last bin. */
function histogramPoints(bins, side) {
  const total = d3.sum(bins);
  let below = 0;
  const points = Array.from(bins, (count, at) => {
    const point = { from: at / bins.length, count, above: 100 * (1 - below / total), side };
    below += count;
    return point;
  });
  return [...points, { from: 1, count: bins.at(-1), above: 0, side }];
}

function pairExamples(block, side, label, token) {
  const list = (name, heading, none) => {
    const rows = [];
    for (let at = 0; at < block.examples; at++) {
      const place = (side.row * block.examples + at) * 2;
      const [own, other] = block.columns[name].subarray(place, place + 2);
      if (own === 0xffffffff) break;
      const cosine = block.columns[name + "_cosine"][side.row * block.examples + at];
      rows.push(el("li", {}, featureLink(side.from, own), token(side.from, own), " and ", featureLink(side.to, other), token(side.to, other), " – cosine " + cosine.toFixed(3)));
    }
    return [el("h4", { text: heading }), rows.length ? el("ol", {}, ...rows) : el("p", { text: none })];
  };
  return el("div", {}, el("h3", { text: label(side.from) + " in " + label(side.to) }),
    ...list("shared", "Most alike", "No feature has a match."),
    ...list("alone", "Most active without a match, with their nearest", "Every feature that fires has a match."));
}

/** The token that a feature fires most on, if it is known. */
function firstToken(list, texts, run, feature) {
  const at = list.at(run, feature);
  const [word] = at < 0 ? [] : list.tokens(at);
  return word === undefined ? "" : el("span", { class: "tokens first" }, el("bdi", { text: visibleToken(texts[word]) }));
}

const featureLink = (run, feature) => el("a", { href: "#feature/" + run + "/" + feature }, "#" + feature);
