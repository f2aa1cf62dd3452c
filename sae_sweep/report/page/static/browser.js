"use strict";
/* The feature browser: a list of all features, and a page per feature with another one beside it. */

const AT_ONCE = 50;

/** The list's block, with what is derived from it. */
const features = once(async () => {
  const block = await featuresBlock();
  const { starts, numbers, family_starts: families, kind_counts: counts, kinds } = block.columns;
  const runOf = new Uint16Array(starts[starts.length - 1]);
  for (let run = 0; run + 1 < starts.length; run++) runOf.fill(run, starts[run], starts[run + 1]);
  const kindStarts = [0];
  for (const count of counts) kindStarts.push(kindStarts.at(-1) + count);
  const share = (value) => (value === 255 ? null : value / 254);
  const stored = (value) => (value === block.never ? 0 : 10 ** (-value / block.log_steps));
  const c = block.columns;
  return {
    ...block, runOf,
    /** Position in the list of a feature of a run; -1 if it is not listed. */
    at: (run, feature) => {
      const found = d3.bisectLeft(numbers, feature, starts[run], starts[run + 1]);
      return found < starts[run + 1] && numbers[found] === feature ? found : -1;
    },
    fires: (at) => c.density[at] !== block.never,
    density: (at) => stored(c.density[at]),
    match: (at) => share(c.match[at]),
    stable: (at) => share(c.stable[at]),
    position: (at) => share(c.position[at]),
    cosine: (at) => share(c.cosine[at]),
    largest: (at) => block.most * stored(c.largest[at]),
    tokens: (at) => Array.from(c.tokens.subarray(at * block.width, (at + 1) * block.width)).filter((word) => word > 0),
    familySize: (at) => (c.family[at] < 0 ? 0 : families[c.family[at] + 1] - families[c.family[at]]),
    kindsOf: (family) => Array.from(kinds.subarray(kindStarts[family], kindStarts[family + 1]), (kind) => block.kind_words[kind]),
    membersOf: (family) => d3.range(families[family], families[family + 1]).map((at) => [c.family_runs[at], c.family_features[at]]),
  };
});

const SORTS = {
  density: "density", match: "match (share of the other SAEs that have it)", cosine: "nearest cosine",
  stable: "stability over seeds", position: "position share", largest: "largest activation", familySize: "family size",
};

function browserSection(core) {
  const about = core.features;
  const state = { run: "", query: "", kind: "", sort: "density", down: true, dead: false, shown: AT_ONCE };
  const results = el("div", { class: "results" });
  const view = el("div", { id: "feature", tabindex: -1 });
  const refresh = async () => results.replaceChildren(...(await listView(core, state, refresh)));
  let waiting;
  const set = (key) => (value) => {
    Object.assign(state, { [key]: value, shown: AT_ONCE });
    clearTimeout(waiting);
    waiting = setTimeout(refresh, key === "query" ? 200 : 0);
  };
  const search = el("input", { type: "search", placeholder: "token, such as def", "aria-label": "Search features by a token they fire on", oninput: (event) => set("query")(event.target.value) });
  const kind = select("in", [["", "any family or none"]], set("kind"));
  const controls = el("p", { class: "controls" },
    about.analysed.length ? el("label", {}, "Fires on ", search) : null,
    select("of", [["", "all SAEs"], ...core.runs.shorts.map((short, run) => [String(run), visible(short)])], set("run")),
    kind,
    select("sorted by", Object.entries(SORTS), set("sort")),
    el("label", {}, el("input", { type: "checkbox", onchange: (event) => set("down")(!event.target.checked) }), " smallest first"),
    el("label", {}, el("input", { type: "checkbox", onchange: (event) => set("dead")(event.target.checked) }), " dead ones too"));
  let begun = false;
  const begin = async () => {
    if (begun) return;
    begun = true;
    const { kind_words: kinds } = await features();
    kind.querySelector("select").append(...["in a family", "in no family", ...kinds.slice(1)].map((one) => el("option", { value: one }, visible(one))));
    refresh();
  };
  new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && begin(), { rootMargin: "400px" }).observe(results);
  return { nodes: [el("p", {}, ...aboutFeatures(about)), controls, results, view], open: (run, feature) => openFeature(core, view, run, feature) };
}

function aboutFeatures(about) {
  if (about.analysed.length === 0) {
    return [number(about.listed) + " of " + number(about.count) + " features are listed. What text they fire on is not known yet: run ", el("code", { text: "task=analyse" }), " with this sweep, then this page shows it."];
  }
  const listed = about.listed < about.count ? number(about.listed) + " of " + number(about.count) + " features, spread evenly over firing rates" : number(about.count) + " features";
  const all = listed + ", each with how often it fires and which other SAEs have it. ";
  if (about.folder === null) return [all + "The contexts of all " + number(about.live) + " that fire on the analysed SAEs' text are inside this page."];
  return [all + "Contexts of " + number(about.inside) + " are inside this page, those of all " + number(about.live) + " in the folder ",
    el("code", { text: about.folder }), " beside it."];
}

/** Positions in the list of the features that are wanted, in order. */
async function wanted(state) {
  const list = await features();
  const texts = await words();
  const query = state.query.toLowerCase().replace(/[·↵⇥]/g, (sign) => ({ "·": " ", "↵": "\n", "⇥": "\t" })[sign]);
  const has = query === "" ? null : Uint8Array.from(texts, (text, word) => word > 0 && text.toLowerCase().includes(query));
  const { tokens } = list.columns;
  const firesOn = (at) => {
    for (let place = at * list.width; place < (at + 1) * list.width; place++) if (has[tokens[place]]) return true;
    return false;
  };
  const [from, to] = state.run === "" ? [0, list.runOf.length] : [list.columns.starts[state.run], list.columns.starts[Number(state.run) + 1]];
  const inKind = (at) => {
    const family = list.columns.family[at];
    if (state.kind === "in no family") return family < 0 && list.fires(at);
    return family >= 0 && (state.kind === "in a family" || list.kindsOf(family).includes(state.kind));
  };
  const found = [];
  for (let at = from; at < to; at++) {
    if (!state.dead && !list.fires(at)) continue;
    if (state.kind !== "" && !inKind(at)) continue;
    if (has !== null && !firesOn(at)) continue;
    found.push(at);
  }
  const value = Float64Array.from(found, (at) => list[state.sort](at) ?? NaN);
  const order = d3.range(found.length).sort((a, b) => {
    const [x, y] = [value[a], value[b]];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
    return (state.down ? y - x : x - y) || a - b;
  });
  return order.map((at) => found[at]);
}

async function listView(core, state, refresh) {
  const list = await features();
  const texts = await words();
  const found = await wanted(state);
  const shown = found.slice(0, state.shown);
  const columns = [
    { label: "feature" }, { label: "SAE" }, ...(core.features.analysed.length ? [{ label: "fires most on" }] : []),
    { label: "density", number: true, title: "Share of held-out tokens on which it fires" },
    { label: "largest", number: true, digits: 2, title: "Largest activation, SAE-input scale" },
    { label: "match", number: true, title: "Share of the other SAEs that have a feature above the cosine threshold" },
    { label: "nearest", number: true, title: "Cosine of the nearest feature of all other SAEs" },
    { label: "stability", number: true, title: "Share of the other seeds that hold it" },
    { label: "position", number: true, title: "Share of the activation's variance that the position explains (omega squared)" },
    { label: "family", number: true, title: "SAEs that have its family; 0: in none" },
  ];
  const head = el("tr", {}, ...columns.map((column) => el("th", { scope: "col", title: column.title, class: column.number ? "number" : null }, column.label)));
  const rows = shown.map((at) => {
    const run = list.runOf[at];
    const feature = list.columns.numbers[at];
    const cells = [
      visible(core.runs.shorts[run]), ...(core.features.analysed.length ? [tokenList(list.tokens(at).map((word) => texts[word]))] : []),
      significant(list.density(at)), number(list.largest(at), 2), percent(list.match(at), 0), number(list.cosine(at), 2),
      percent(list.stable(at), 0), percent(list.position(at), 0), String(list.familySize(at)),
    ];
    return el("tr", {}, el("th", { scope: "row" }, featureLink(run, feature)),
      ...cells.map((cell, place) => el("td", { class: columns[place + 1].number ? "number" : null }, cell)));
  });
  announce(number(found.length) + " features found");
  const table = el("table", {}, el("caption", { text: number(found.length) + " features" + (found.length > shown.length ? ", the first " + shown.length + " shown" : "") }),
    el("thead", {}, head), el("tbody", {}, ...rows));
  const more = el("button", { type: "button", onclick: () => { state.shown += 4 * AT_ONCE; refresh(); } }, "Show more");
  return [el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Features" }, table), ...(found.length > shown.length ? [more] : [])];
}

const tokenList = (tokens) => el("span", { class: "tokens" }, ...tokens.map((token) => el("bdi", { text: visibleToken(token) })));

async function openFeature(core, view, run, feature) {
  if (!(run < core.runs.names.length && feature >= 0)) {
    view.replaceChildren(el("p", { text: "This sweep has no such feature." }));
    return;
  }
  const beside = el("div", { class: "card" });
  const own = await featureCard(core, run, feature);
  const others = await nearestOf(core, run, feature);
  const show = async (choice) => {
    const [other, number_] = choice.split("/").map(Number);
    beside.replaceChildren(...(await featureCard(core, other, number_)));
  };
  const choose = others.length
    ? el("p", { class: "controls" }, closeButton(), select("Beside it, its nearest in", others.map((one) => [one.run + "/" + one.feature,
        visible(core.runs.shorts[one.run]) + " – #" + one.feature + (one.cosine === null ? "" : ", cosine " + one.cosine.toFixed(2))]), show))
    : el("p", { class: "note", text: "No other SAE was compared with this one." });
  view.replaceChildren(choose, el("div", { class: "two" }, el("div", { class: "card" }, ...own), beside));
  if (others.length) await show(others[0].run + "/" + others[0].feature);
  view.focus();
  view.scrollIntoView({ block: "start" });
}

/** The nearest feature of each other SAE, the most alike first; only the very nearest where no more is known. */
async function nearestOf(core, run, feature) {
  const list = await features();
  const at = list.at(run, feature);
  const found = await detailsOf(run, feature, core.features);
  if (found?.block.others?.length) {
    const { others, columns } = found.block;
    const from = found.row * others.length;
    return others.map((other, place) => ({ run: other, feature: columns.other_feature[from + place], cosine: columns.other_cosine[from + place] / 254 }))
      .filter((one) => one.run !== run && columns.other_cosine[from + others.indexOf(one.run)] !== 255)
      .sort((a, b) => b.cosine - a.cosine);
  }
  if (at < 0 || list.cosine(at) === null) return [];
  return [{ run: list.columns.nearest_run[at], feature: list.columns.nearest_feature[at], cosine: list.cosine(at) }];
}

/** All that is known of one feature. */
async function featureCard(core, run, feature) {
  const list = await features();
  const at = list.at(run, feature);
  const found = await detailsOf(run, feature, core.features);
  const facts = at < 0 ? [] : [
    ["Density", list.fires(at) ? significant(list.density(at)) + " of held-out tokens" : "never fires on the held-out text"],
    ["Largest activation", number(list.largest(at), 2)],
    ["Other SAEs that have it", percent(list.match(at), 0)],
    ["Other seeds that hold it", percent(list.stable(at), 0)],
    ["Variance that the position explains", percent(list.position(at), 0)],
  ];
  const texts = await words();
  return [
    el("h3", {}, "Feature ", featureLink(run, feature), " of ", el("span", { text: visible(core.runs.shorts[run]) })),
    el("dl", {}, ...facts.flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: value })])),
    at < 0 ? null : familyOf(core, list, at),
    ...(found ? detailNodes(found, texts) : []),
    at < 0 ? null : densityChart(list, run, at),
    found && (at < 0 || list.fires(at)) ? null : el("p", { class: "note", text: missing(core, list, run, at) }),
  ].filter(Boolean);
}

function missing(core, list, run, at) {
  if (at < 0) return "It is not in the list of this page: the list is a sample, or the statistics of its SAE cannot be read.";
  if (!core.features.analysed.includes(run)) return "The text it fires on is not known: run task=analyse with this sweep.";
  if (!list.fires(at)) return "It never fires, so there is no text to show.";
  if (core.features.folder === null) return "It does not fire on the text that was analysed.";
  return "Its contexts are in the folder " + core.features.folder + " beside this page, which is not there, or of another version of the page.";
}

function familyOf(core, list, at) {
  const family = list.columns.family[at];
  if (family < 0) {
    const followed = core.features.followed.includes(list.runOf[at]);
    const why = followed ? "In no family: no other SAE shares it mutually." : "Families do not cover this SAE: it still matches its start, or no other SAE reads its hook.";
    return el("p", { text: list.fires(at) ? why : "" });
  }
  const members = list.membersOf(family);
  return el("details", {}, el("summary", { text: "Family of " + members.length + " SAEs: " + (list.kindsOf(family).map(visible).join("; ") || "of no particular kind") }),
    el("ul", {}, ...members.map(([run, feature]) => el("li", {}, featureLink(run, feature), " ", visible(core.runs.shorts[run])))));
}

/** Where the feature stands among the densities of its SAE. */
function densityChart(list, run, at) {
  const { starts, density } = list.columns;
  const logs = [];
  for (let one = starts[run]; one < starts[run + 1]; one++) if (list.fires(one)) logs.push(-density[one] / list.log_steps);
  const own = list.fires(at) ? [-density[at] / list.log_steps] : [];
  return chart("Density among the features of the SAE", () => ({
    height: 130, marginBottom: 34, marginLeft: 44,
    x: { label: "log₁₀ density", labelAnchor: "center", labelArrow: "none" }, y: { label: "features", labelArrow: "none", ticks: 3 },
    marks: [Plot.rectY(logs, Plot.binX({ y: "count" }, { x: (value) => value, thresholds: 30, fill: "var(--faint)" })),
      Plot.ruleX(own, { stroke: "var(--s1)", strokeWidth: 2 })],
  }), "How often the SAE's features fire; the line is this one.");
}

function detailNodes(found, texts) {
  const { block, row } = found;
  const c = block.columns;
  const many = block.tokens_per_list;
  const list = (name, values, digits) => {
    if (!c[name]) return [];
    const shown = d3.range(row * many, (row + 1) * many).filter((place) => c[name][place] > 0);
    return shown.map((place) => el("li", {}, el("bdi", { text: visibleToken(texts[c[name][place]]) }), el("span", { text: c[values][place].toFixed(digits) })));
  };
  const lists = [
    ["Fires most on", "mean activation", list("tokens_by_mean", "token_means", 2)],
    ["Promotes", "logit effect", list("promoted", "promoted_effects", 2)],
    ["Suppresses", "logit effect", list("suppressed", "suppressed_effects", 2)],
  ].filter(([, , items]) => items.length);
  return [
    el("div", { class: "three" }, ...lists.map(([title, unit, items]) => el("div", {}, el("h4", {}, title, el("small", { text: unit })), el("ol", { class: "tokenlist" }, ...items)))),
    ...(c.contexts[row] === 0 ? [] : [
      el("h4", { text: "Contexts: the highest activations, then one of each tenth" }),
      el("div", { class: "contexts" }, ...contextLines(found, texts)),
      activationChart(block, row),
    ]),
  ];
}

/** The distribution of a feature's activations from its deciles: each bar holds a tenth of them. */
function activationChart(block, row) {
  const edges = [...block.columns.decile_edges.subarray(row * block.deciles, (row + 1) * block.deciles), block.columns.largest[row]];
  if (edges.some(Number.isNaN)) return null;
  const bars = barsOf(edges);
  return chart("Distribution of its activations", () => ({
    height: 130, marginBottom: 34, marginLeft: 44,
    x: { label: "activation, where not zero", labelAnchor: "center", labelArrow: "none" }, y: { label: "density", labelArrow: "none", ticks: 3 },
    marks: [Plot.rect(bars, { x1: "from", x2: "to", y1: 0, y2: "height", fill: "var(--s2)", fillOpacity: 0.6, stroke: "var(--s2)", strokeWidth: 0.5 })],
  }), number(block.columns.active[row]) + " activations; each bar holds a tenth of them, or more where some are equal; the first begins at 0.");
}

/** Bars from 0 between the edges, a tenth of the mass each; what lies between equal edges goes to its neighbour. */
function barsOf(edges) {
  const bars = [];
  let [from, mass] = [0, 0];
  for (const to of edges) {
    mass += 0.1;
    if (to > from) {
      bars.push({ from, to, mass });
      [from, mass] = [to, 0];
    }
  }
  if (bars.length) bars.at(-1).mass += mass;
  return bars.map((bar) => ({ ...bar, height: bar.mass / (bar.to - bar.from) }));
}

function contextLines({ block, row, context, word }, texts) {
  const c = block.columns;
  let start = word;
  return d3.range(context, context + c.contexts[row]).map((at) => {
    const tokens = d3.range(start, start + c.lengths[at]).map((place, number_) => {
      const strength = c.around[place] / block.steps;
      const node = el(number_ === c.at[at] ? "mark" : "bdi", { style: "--a:" + strength.toFixed(3), title: visibleToken(texts[c.words[place]]) + "  about " + (strength * c.largest[row]).toFixed(1) });
      node.append(...spaced(texts[c.words[place]]));
      return number_ === c.at[at] ? el("bdi", {}, node) : node;
    });
    start += c.lengths[at];
    const kind = c.decile[at] === 0 ? "top" : "tenth " + c.decile[at];
    return el("p", {}, el("span", { class: "rank" }, kind + " · " + c.activation[at].toFixed(2)), el("span", {}, ...tokens));
  });
}

/** A token's text, its spaces as faint dots. */
function spaced(text) {
  if (text === "") return ["∅"];
  return visible(text).split(/( +)/).filter(Boolean).map((part) => (part.startsWith(" ") ? el("i", { class: "space", text: "·".repeat(part.length) }) : part));
}
