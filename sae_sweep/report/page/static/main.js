"use strict";
/* Puts the page together. */

function section(id, title, ...nodes) {
  const found = nodes.flat().filter(Boolean);
  if (found.length === 0) return;
  document.getElementById("nav").append(el("a", { href: "#" + id }, title));
  document.getElementById("main").append(el("section", { id, "aria-labelledby": "head-" + id }, el("h2", { id: "head-" + id, text: title }), ...found));
}

function runsTable(core) {
  const columns = core.table.columns.map((column) => ({ ...column, show: "digits" in column ? undefined : (value) => visible(value ?? "–"), number: core.table.rows.every((row) => typeof row[core.table.columns.indexOf(column)] !== "string") }));
  const folder = (name, run) => el("a", { href: encodeURIComponent(core.runs.names[run]) + "/", title: visible(name) }, visible(core.runs.shorts[run]));
  const state = (value, run) => el("span", { title: visible(core.table.error[run] ?? "") }, visible(value) + (core.table.mixed[run] ? " †" : ""));
  const start = columns.find((column) => column.id === "init_match");
  if (start) start.show = (value, run) => number(value, 3) + startMark(core, run, value);
  const shares = start ? core.table.rows.map((row) => row[columns.indexOf(start)]) : [];
  const rows = core.table.rows.map((row, run) => [core.runs.names[run], core.table.states[run], ...row]);
  const failed = core.table.error.flatMap((error, run) => (error ? [el("li", { text: visible(core.runs.shorts[run]) + ": " + visible(error) })] : []));
  return [
    sortable(core.runs.names.length + (core.runs.names.length === 1 ? " run" : " runs") + "; a name leads to the run's folder", [{ label: "run", show: folder }, { label: "state", show: state }, ...columns], rows, { filter: "filter runs, such as topk 42", text: (run) => [core.runs.names[run], core.runs.shorts[run], core.table.states[run]].join(" ") }),
    failed.length ? el("ul", { class: "failed" }, ...failed) : null,
    ...startNotes(core, shares, shares.map((_, run) => run)).map((text) => el("p", { class: "note", text })),
    core.table.mixed.some(Boolean) ? el("p", { class: "note", text: "† mixed: part of the run was trained with other numerics." }) : null,
  ];
}

function matchingSection(core, host) {
  if (!core.matching) return [];
  const show = async (a, b) => {
    const title = visible(core.runs.shorts[a]) + " and " + visible(core.runs.shorts[b]);
    host.replaceChildren(el("h3", { text: title, tabindex: -1 }), closeButton(), ...(await pairView(core, a, b)));
    host.firstChild.focus();
    host.scrollIntoView({ block: "nearest" });
  };
  const open = (a, b) => { location.hash = "pair/" + a + "/" + b; };
  return { show, nodes: [...matrixSection(core, open), host, thresholdChart(core), measuresTable(core), ...layerSections(core, open)] };
}

function figuresSection(groups) {
  return groups.map((group, at) => el("details", { open: at === 0 }, el("summary", { text: visible(group.title) + " (" + group.images.length + ")" }),
    el("div", { class: "images" }, ...group.images.map(imageFigure))));
}

/** Decimals of a column: none of whole numbers, three of shares and other small numbers, one of others. */
function digitsOf(values) {
  const known = values.filter((value) => typeof value === "number");
  if (known.every(Number.isInteger)) return 0;
  return Math.max(...known.map(Math.abs)) < 2 ? 3 : 1;
}

const imageFigure = (image) => el("figure", {},
  image.file ? el("a", { href: image.file.split("/").map(encodeURIComponent).join("/") }, visible(image.file)) : el("img", { src: image.source, alt: visible(image.caption), width: image.width, height: image.height, loading: "lazy" }),
  el("figcaption", { text: visible(image.caption) }));

/** Characters of text above which the lines of a column are broken. */
const WIDE = 40;

function writtenSection(core, one, at) {
  const tables = one.tables.map((table) => {
    const places = table.columns.map((_, place) => place).filter((place) => table.rows.some((row) => row[place] !== "" && row[place] !== null));
    const columns = places.map((place) => {
      const cells = table.rows.map((row) => row[place]);
      return { label: visible(table.columns[place]), number: cells.every((cell) => typeof cell !== "string"), digits: table.digits ?? digitsOf(cells), wide: cells.some((cell) => typeof cell === "string" && cell.length > WIDE) };
    });
    const nodes = [sortable(visible(table.title), columns, table.rows.map((row) => places.map((place) => row[place]))),
      table.note ? el("p", { class: "note", text: visible(table.note) }) : null].filter(Boolean);
    return table.folded ? [el("details", {}, el("summary", { text: visible(table.title) }), ...nodes)] : nodes;
  });
  section("section-" + at, visible(one.title), el("p", { text: visible(one.text) }), ...tables.flat(), one.figures.length ? el("div", { class: "images" }, ...one.figures.map(imageFigure)) : null);
}

function methodsSection(core) {
  const { config, runs, ...counted } = core.methods;
  const table = (title, columns, rows) => (rows.length ? el("details", {}, el("summary", { text: title }), sortable(title, columns, rows)) : null);
  const titles = { versions: "Versions", resolved: "What auto became", fingerprints: "Fingerprints of text and weights", fell_back: "Fast paths that were not used", hosts: "Machines" };
  return [
    el("p", { text: "Written " + core.written + " by sae_sweep " + core.version + ". Keys that differ between runs are in the table of runs; each run's folder has its config.yaml, as it was trained." }),
    table("Keys that all runs share", [{ label: "key" }, { label: "value" }], Object.entries(config)),
    ...Object.entries(titles).map(([name, title]) => table(title, [{ label: "what" }, { label: "value" }, { label: "runs", number: true }], counted[name])),
    el("details", {}, el("summary", { text: "How to cite" }), el("pre", { tabindex: 0, text: core.citation })),
  ];
}

/** Close what is open: a pair, or a feature. */
function close() {
  if (/^#(feature|pair)\//.test(location.hash)) location.hash = location.hash.startsWith("#pair") ? "matching" : "features";
}

const closeButton = () => el("button", { type: "button", onclick: close, title: "Escape closes it, too" }, "Close");

function route(core, matching, browser) {
  const [what, a, b] = location.hash.slice(1).split("/");
  const [first, second] = [Number(a), Number(b)];
  const known = (run) => Number.isInteger(run) && run in core.runs.names;
  document.getElementById("feature")?.replaceChildren();
  document.getElementById("pair")?.replaceChildren();
  if (what === "feature" && known(first) && Number.isInteger(second)) browser.open(first, second);
  if (what === "pair" && known(first) && known(second) && matching.show) matching.show(first, second);
}

async function start() {
  document.body.append(el("p", { id: "said", class: "hidden", role: "status" }));
  const core = await readJson("core");
  document.getElementById("nav").append(el("a", { href: "#answer" }, "Answer"));
  document.getElementById("answer").append(...[
    core.problems.length ? el("ul", { class: "failed" }, ...core.problems.map((problem) => el("li", { text: visible(problem) }))) : null,
    core.answer.keys.length ? answerChart(core.answer) : null,
    ...core.answer.notes.map((note) => el("p", { class: "note", text: visible(note) })),
  ].filter(Boolean));
  section("runs", "Runs", ...runsTable(core));
  section("training", "Training", ...(core.curves.runs.length ? curvesSection(core) : []));
  const matching = matchingSection(core, el("div", { id: "pair", "aria-live": "polite" }));
  section("matching", "Matching", ...(matching.nodes ?? []));
  section("families", "Families", ...familiesSection(core));
  const browser = browserSection(core);
  section("features", "Features", ...(core.features.count ? browser.nodes : []));
  section("figures", "Figures", ...figuresSection(core.figures));
  core.sections.forEach((one, at) => writtenSection(core, one, at));
  section("methods", "Methods", ...methodsSection(core));
  window.addEventListener("hashchange", () => route(core, matching, browser));
  window.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
  route(core, matching, browser);
  document.documentElement.dataset.ready = "true";
}

start();
