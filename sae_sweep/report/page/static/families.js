"use strict";
/* Families: features that several SAEs share, and what they depend on. */

function familiesSection(core) {
  const [first, ...others] = d3.sort(core.families, (hook) => -hook.members);
  if (first === undefined) return [];
  return [first.label ? el("h3", { text: hookTitle(first) }) : null, ...hookNodes(first),
    ...others.map((hook) => el("details", {}, el("summary", { text: hookTitle(hook) }), ...hookNodes(hook).filter(Boolean)))];
}

const hookTitle = (hook) => "Hook " + visible(hook.label);

function hookNodes(hook) {
  return [
    el("p", {}, number(hook.families) + " families hold " + number(hook.members) + " features; " + number(hook.alone) +
      " features (" + percent(hook.alone / Math.max(1, hook.alone + hook.members)) + ") are in none."),
    hook.kinds.length ? kindsChart(hook.kinds) : null,
    hook.counts.length ? countsChart(hook.counts) : null,
    hook.kinds.length ? kindsTable(hook.kinds) : null,
  ];
}

/** By key: families of one value only, and families common to all values, beside chance. */
function kindsChart(kinds) {
  const words = { only: "in one value only", common: "common to all values" };
  const rows = kinds.filter((row) => row.key !== "" && row.value === "").map((row) => ({
    ...row, kind: words[row.kind], share: 100 * row.share, low: 100 * row.low, high: 100 * row.high,
    null: 100 * row.null, null_low: 100 * row.null_low, null_high: 100 * row.null_high,
  }));
  if (rows.length === 0) return null;
  const keys = [...new Set(rows.map((row) => row.key))];
  return chart("Families by key: " + rows.map((row) => row.key + " " + row.kind + " " + row.share.toFixed(1) + " %").join(", "), (width) => {
    const narrow = width < 560;
    return {
      height: (narrow ? 2 : 1) * (50 + 30 * keys.length) + 60, marginLeft: marginFor(keys, width), marginRight: 20, marginBottom: 38,
      x: { label: "share of the families (%)", labelAnchor: "center", labelArrow: "none", grid: true, zero: true, nice: true },
      y: { label: null, domain: keys, padding: 0.5, axis: "left" }, [narrow ? "fy" : "fx"]: { label: null, axis: null, domain: Object.values(words) },
      facet: { data: rows, [narrow ? "y" : "x"]: "kind" },
      marginTop: 24,
      marks: [
        Plot.text(Object.values(words), { [narrow ? "fy" : "fx"]: (kind) => kind, text: (kind) => kind, frameAnchor: "top-left", dy: -12, fontWeight: 600 }),
        Plot.link(rows, { x1: "null_low", x2: "null_high", y1: "key", y2: "key", stroke: "var(--faint)", strokeWidth: 11 }),
        Plot.tickX(rows, { x: "null", y: "key", stroke: "var(--muted)", strokeWidth: 2 }),
        Plot.link(rows, { x1: "low", x2: "high", y1: "key", y2: "key", stroke: "var(--s0)", strokeWidth: 2.5 }),
        Plot.dot(rows, { x: "share", y: "key", fill: "var(--s0)", r: 4 }),
      ],
    };
  }, ["What families depend on. ", legend([["dot", "var(--s0)", "share, with 95 % interval (bootstrap over families)"],
    ["bar", "var(--faint)", "by chance: presence shuffled, 95 % range"]])]);
}

/** How many families are in exactly so many SAEs. */
function countsChart(counts) {
  const rows = counts.filter((row) => row.saes > 1);
  if (rows.length === 0) return null;
  return chart("Families by the number of SAEs that they are in", (width) => ({
    height: 220, marginBottom: 38,
    x: { label: "SAEs that have the family", labelAnchor: "center", labelArrow: "none", type: "band", tickFormat: (saes) => (saes % Math.ceil(rows.length / (width / 30)) ? "" : String(saes)) },
    y: { label: "families", labelArrow: "none", grid: true },
    marks: [Plot.barY(rows, { x: "saes", y: "features_in_exactly", fill: "var(--s0)" }), Plot.ruleY([0])],
  }), "In how many SAEs each family is. Features in no family, which one SAE alone has, are not drawn.");
}

function kindsTable(kinds) {
  const columns = [
    { label: "kind" }, { label: "of" }, { label: "families", number: true }, { label: "share (%)", number: true, digits: 1 },
    { label: "low", title: "Lower end of the 95 % interval (%)", number: true, digits: 1 },
    { label: "high", title: "Upper end of the 95 % interval (%)", number: true, digits: 1 },
    { label: "by chance (%)", number: true, digits: 1 },
    { label: "low", title: "2.5th percentile of shuffled presence (%)", number: true, digits: 1 },
    { label: "high", title: "97.5th percentile of shuffled presence (%)", number: true, digits: 1 },
  ];
  const rows = kinds.map((row) => [row.kind, row.key === "" ? "all SAEs" : row.value === "" ? "any " + row.key : row.key + " " + row.value, row.families,
    ...[row.share, row.low, row.high, row.null, row.null_low, row.null_high].map((value) => (value === null ? null : 100 * value))]);
  return el("details", {}, el("summary", { text: "Kinds of families as a table" }),
    el("p", { class: "note", text: "Universal: in at least nine tenths of the SAEs. Common: in at least half of those of every value. Only: in at least half of those of one value, and in no other." }),
    sortable("Kinds of families", columns, rows));
}
