"use strict";
/* The data inside the page: compressed JSON, and blocks of columns. */

const TYPES = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i4: Int32Array, f4: Float32Array };

async function inflate(base64) {
  const packed = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

const holder = (name) => document.getElementById("data-" + name);

async function readJson(name) {
  return JSON.parse(new TextDecoder().decode(await inflate(holder(name).textContent)));
}

/** A block of columns: the header's keys, and each column as an array of numbers. */
function unpack(buffer) {
  const size = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
  const columns = {};
  for (const [name, [type, place, length]] of Object.entries(header.columns)) {
    columns[name] = new TYPES[type](buffer, 4 + size + place, length);
  }
  return { ...header, columns };
}

const readBlock = async (name) => unpack(await inflate(holder(name).textContent));

/** What a function finds, kept: it is called once, when it is needed first. */
function once(find) {
  let found;
  return () => (found ??= find());
}

const pairsBlock = once(async () => indexedPairs(await readBlock("pairs")));
const featuresBlock = once(() => readBlock("features"));
const words = once(() => (holder("words") ? readJson("words") : [""]));

function indexedPairs(block) {
  const rows = new Map();
  block.columns.a.forEach((a, row) => rows.set(a + "," + block.columns.b[row], row));
  return { ...block, rowOf: (a, b) => rows.get(a + "," + b) };
}

/** Details of features by "run,feature": where their lists and contexts begin in a block. */
function indexedDetails(block) {
  const places = new Map();
  const { run, feature, contexts, lengths } = block.columns;
  let context = 0;
  let word = 0;
  for (let row = 0; row < feature.length; row++) {
    places.set(run[row] + "," + feature[row], { block, row, context, word });
    for (let one = 0; one < contexts[row]; one++) word += lengths[context + one];
    context += contexts[row];
  }
  return places;
}

const insideDetails = once(async () => (holder("details") ? indexedDetails(await readBlock("details")) : new Map()));

/* Files of the folder beside the page call this function with their block. */
const arriving = new Map();
function saeSweepDetails(key, base64) {
  const script = document.currentScript;
  arriving.get(script)?.(key, base64);
}

const chunks = new Map();
function chunkOf(run, number, about) {
  const name = run + "-" + number;
  if (!chunks.has(name)) {
    const script = el("script", { src: about.folder + "/" + name + ".js" });
    const whole = new Promise((resolve) => {
      arriving.set(script, (key, base64) => resolve(key === about.key ? inflate(base64) : null));
      script.onerror = () => resolve(null);
      script.onload = () => resolve(null);  // after the script has run: it did not arrive, so it is damaged
    });
    chunks.set(name, whole.then((buffer) => (buffer === null ? null : indexedDetails(unpack(buffer)))));
    document.head.append(script);
  }
  return chunks.get(name);
}

/** Details of a feature from the page, or from the folder beside it; null where neither has them. */
async function detailsOf(run, feature, about) {
  const inside = (await insideDetails()).get(run + "," + feature);
  if (inside || about.folder === null || !about.analysed.includes(run)) return inside ?? null;
  const beside = await chunkOf(run, Math.floor(feature / about.chunk), about);
  return beside?.get(run + "," + feature) ?? null;
}
