"use strict";
/* Charts, by Observable Plot; they are drawn again when their width changes. */

const SERIES = ["var(--s0)", "var(--s1)", "var(--s2)", "var(--s3)", "var(--s4)", "var(--s5)", "var(--s6)"];

/** A figure with a caption. `draw(width)` gives Plot's options, or null to draw nothing. */
function chart(label, draw, caption) {
  const host = el("div", { class: "chart", role: "img", "aria-label": label });
  let drawn = 0;
  const again = () => {
    const width = Math.floor(host.clientWidth);
    if (width === 0 || width === drawn) return;
    drawn = width;
    const options = draw(width);
    const plot = options && Plot.plot({ width, style: { background: "none", fontSize: "12px", overflow: "visible" }, ...options });
    host.replaceChildren(...(plot ? [plot] : []));
  };
  new ResizeObserver(() => requestAnimationFrame(again)).observe(host);
  const figure = el("figure", {}, host, caption ? el("figcaption", {}, ...[caption].flat()) : null);
  figure.redraw = () => {
    drawn = 0;
    again();
  };
  return figure;
}

/** A line of the legend: a sign and what it stands for. */
function legend(entries) {
  return el("span", { class: "legend" }, ...entries.map(([kind, colour, text]) =>
    el("span", {}, el("i", { class: kind, style: "--c:" + colour, "aria-hidden": "true" }), text)));
}

const select = (label, options, onchange) =>
  el("label", {}, label + " ", el("select", { onchange: (event) => onchange(event.target.value) },
    ...options.map(([value, text]) => el("option", { value }, text))));

const marginFor = (labels, width) =>
  Math.min(Math.floor(width * 0.4), 16 + 7 * Math.max(4, ...labels.map((label) => label.length)));

/** What share of the features is found again when one key alone differs, beside chance. */
function answerChart(answer) {
  const rows = answer.keys.map((one) => ({
    ...one, ratio: 100 * one.ratio, low: 100 * one.low, high: 100 * one.high,
    lowest: 100 * one.lowest, highest: 100 * one.highest,
    live: one.live === null ? null : 100 * one.live, null: one.null === null ? null : 100 * one.null,
    name: one.key + (one.trained ? "" : " *"),
  }));
  const label = "Features found again: " + rows.map((one) => one.name + " " + one.ratio.toFixed(1) + " %").join(", ");
  return chart(label, (width) => ({
    height: 64 + 38 * rows.length,
    marginLeft: marginFor(rows.map((one) => one.name), width),
    marginRight: 44,
    marginBottom: 38,
    x: { label: "features that have a match (%)", labelAnchor: "center", labelArrow: "none", domain: [0, Math.max(5, ...rows.map((one) => Math.max(one.highest, one.live ?? 0)))], nice: true, grid: true },
    y: { label: null, domain: rows.map((one) => one.name), padding: 0.5 },
    marks: [
      Plot.link(rows, { x1: "lowest", x2: "highest", y1: "name", y2: "name", stroke: "var(--faint)", strokeWidth: 9 }),
      Plot.tickX(rows.filter((one) => one.null !== null), { x: "null", y: "name", stroke: "var(--muted)", strokeWidth: 2 }),
      Plot.link(rows, { x1: "low", x2: "high", y1: "name", y2: "name", stroke: "var(--s0)", strokeWidth: 3 }),
      Plot.dot(rows, { x: "ratio", y: "name", fill: "var(--s0)", r: 4.5 }),
      Plot.dot(rows.filter((one) => one.live !== null), { x: "live", y: "name", stroke: "var(--s1)", strokeWidth: 1.8, r: 4 }),
      Plot.text(rows, { x: (one) => Math.max(one.highest, one.high, one.live ?? 0), y: "name", dx: 12, textAnchor: "start", text: (one) => one.ratio.toFixed(1), fill: "currentColor" }),
    ],
  }), [
    "Share of an SAE's features whose best decoder cosine in the other SAE is above " + answer.threshold + ", by the one key in which the two SAEs differ; both directions averaged. ",
    legend([["dot", "var(--s0)", "all features, with 95 % interval (bootstrap over features)"], ["ring", "var(--s1)", "without dead features"],
      ["bar", "var(--faint)", "range of the pairs"], ["tick", "var(--muted)", "random dictionary"]]),
    rows.some((one) => !one.trained) ? " * All of these pairs have an SAE that still matches its start." : null,
  ]);
}

/** Distinct colours; many of them follow each other from dark to light. */
const coloursFor = (count) => (count <= SERIES.length ? SERIES : d3.quantize((at) => d3.interpolateViridis(0.1 + 0.8 * at), count));

/** Training curves of all runs: one metric at a time, coloured by a swept key. */
function curvesSection(core) {
  const { metrics, runs } = core.curves;
  const keys = core.table.columns.filter((column) => !("digits" in column));
  let metric = Object.keys(metrics).includes("explained_variance") ? "explained_variance" : Object.keys(metrics)[0];
  const valuesOf = (key) => new Set(core.table.rows.map((row) => String(row[core.table.columns.indexOf(key)])));
  let by = (keys.find((key) => valuesOf(key).size <= SERIES.length) ?? keys[0])?.id ?? null;
  const valueOf = (run) => (by === null ? "run" : visible(core.table.rows[run][core.table.columns.findIndex((one) => one.id === by)] ?? "–"));
  const figure = chart("Training curves", (width) => {
    const points = runs.flatMap((one) => (one.values[metric] ?? []).map((value, at) => ({
      tokens: one.tokens[at], value, run: core.runs.shorts[one.run], of: valueOf(one.run) })).filter((point) => point.value !== null));
    const groups = [...new Set(points.map((point) => point.of))].sort(d3.ascending);
    return {
      height: 320, marginLeft: 56, marginBottom: 38,
      x: { label: "SAE inputs (tokens)", labelAnchor: "center", labelArrow: "none", tickFormat: "~s", ticks: Math.min(8, width / 70) },
      y: { label: metrics[metric], labelArrow: "none", grid: true, zero: metric === "dead", tickFormat: "~g" },
      color: { type: "categorical", domain: groups, range: coloursFor(groups.length), legend: by !== null && groups.length <= 14 },
      marks: [
        Plot.line(points, { x: "tokens", y: "value", z: "run", stroke: "of", strokeWidth: runs.length > 20 ? 0.8 : 1.4, strokeOpacity: runs.length > 20 ? 0.7 : 1 }),
        Plot.tip(points, Plot.pointer({ x: "tokens", y: "value", title: (point) => point.run + "\n" + number(point.tokens) + " tokens\n" + significant(point.value), fill: "var(--paper)" })),
      ],
    };
  }, "One line per run, as it was logged while it trained.");
  const controls = el("p", { class: "controls" },
    select("Show", [[metric, metrics[metric]], ...Object.entries(metrics).filter(([name]) => name !== metric)], (value) => { metric = value; figure.redraw(); }),
    keys.length ? select("coloured by", d3.sort(keys, (key) => key.id !== by).map((key) => [key.id, key.label]), (value) => { by = value; figure.redraw(); }) : null);
  return [controls, figure];
}

/** Share of features with a match against the threshold, by key. */
function thresholdChart(core) {
  const all = core.matching.curves;
  const features = all.some((row) => row.features === "live") ? "live" : "all";
  const rows = all.filter((row) => row.features === features && (row.chance === "" || row.chance === "random"))
    .map((row) => ({ ...row, share: 100 * row.share, low: 100 * row.low, high: 100 * row.high }));
  const found = rows.filter((row) => row.chance === "");
  if (found.length === 0) return null;
  return chart("Share of features with a match against the threshold, by key", (width) => ({
    height: 300, marginBottom: 38,
    x: { label: "cosine threshold", labelAnchor: "center", labelArrow: "none", ticks: Math.min(8, width / 60) },
    y: { label: "features that have a match (%)", labelArrow: "none", grid: true, domain: [0, 100], ticks: 5 },
    color: { type: "categorical", domain: [...new Set(found.map((row) => row.key))], range: SERIES, legend: true },
    marks: [
      Plot.ruleX([core.answer.threshold], { stroke: "var(--muted)", strokeDasharray: "3,3" }),
      Plot.areaY(found, { x: "threshold", y1: "low", y2: "high", z: "key", fill: "key", fillOpacity: 0.2 }),
      Plot.lineY(found, { x: "threshold", y: "share", z: "key", stroke: "key", strokeWidth: 1.8 }),
      Plot.lineY(rows.filter((row) => row.chance === "random"), { x: "threshold", y: "share", z: "key", stroke: "var(--muted)", strokeDasharray: "1,3" }),
    ],
  }), "Mean over the pairs that differ in the key alone, with the 95 % interval over features" +
    (features === "live" ? "; dead features are left out" : "") + ". Dashed: the threshold in use. Dotted: a random dictionary in the other's place.");
}

/** Every measure of a match beside its null, by key. */
function measuresTable(core) {
  const rows = core.matching.measures;
  if (rows.length === 0) return null;
  const columns = [
    { label: "key" }, { label: "measure" }, { label: "value", number: true, digits: 3 },
    { label: "low", title: "Lower end of the 95 % interval", number: true, digits: 3 },
    { label: "high", title: "Upper end of the 95 % interval", number: true, digits: 3 },
    { label: "by chance", title: "With a random dictionary in the other's place", number: true, digits: 3 },
  ];
  return el("details", {}, el("summary", { text: "Every measure beside its null" }),
    sortable("Measures of how features match, by the one key in which two SAEs differ", columns,
      rows.map((row) => [row.key, row.measure, row.value, row.low, row.high, row.null])));
}
