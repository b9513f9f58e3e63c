// The graph: reads the embedded JSON, derives what the page needs of each node, indexes links by both ends.

// The nodes as the file gives them. Supernodes come behind them, and links as the view asks: see regroup.
function readGraph() {
  const data = JSON.parse($("graph-data").textContent);
  const tokens = data.metadata.prompt_tokens;
  const nodes = data.nodes.map((raw, i) => describe(raw, i, tokens));
  const byId = new Map(nodes.map((n) => [n.id, n.i]));
  for (const n of nodes) {
    if (n.kind === "own") n.owner = byId.get(n.id.replace(/^own_/, "")) ?? -1;
  }
  placeInRows(nodes);
  const { source, target, weight, other } = data.links;
  const given = { count: weight.length, weight: Float64Array.from(weight) };
  given.source = Int32Array.from(source);
  given.target = Int32Array.from(target);
  given.other = other ? Float64Array.from(other) : null;
  for (const n of nodes) rename(n, n.name);
  return {
    title: data.title, metadata: data.metadata, params: data.qParams, cards: data.cards ?? {}, compared: data.compared ?? null,
    served: data.served ?? null, tokens, nodes, byId, given, size: nodes.length, memberOf: new Int32Array(nodes.length).fill(-1),
  };
}

function rename(n, name) {
  n.name = name;
  n.label = labelOf(n);
  n.haystack = haystackOf(n);
}

function describe(raw, i, tokens) {
  const kind = kindOf(raw);
  const logit = kind === "logit" ? /^Output\s+"([\s\S]*)"\s*\(p=([^)]*)\)/.exec(raw.clerp || "") : null;
  return {
    i, raw, kind, id: raw.node_id, pos: raw.ctx_idx,
    token: logit ? logit[1] : raw.token ?? tokens[raw.ctx_idx],
    probability: kind === "logit" ? raw.token_prob || (logit && Number(logit[2])) || 0 : null,
    feature: kind === "feature" ? featureOf(raw) : null, attention: isOfAttention(raw),
    name: kind === "feature" || !logit ? (raw.clerp || "").trim() : "",
    influence: Number.isFinite(raw.influence) ? raw.influence : null,
    owner: -1, side: raw.side ?? null,
  };
}

const KINDS = ["embedding", "position", "feature", "head", "skip", "error", "bias", "own", "logit"];

// Features and errors of attention outputs are features and errors, half a layer below those of the MLP.
const isOfAttention = (raw) => /^attention_/.test(raw.kind ?? "") || /^lorsa/.test(raw.feature_type.toLowerCase());

function kindOf(raw) {
  if (isOfAttention(raw)) return /error$/.test(raw.kind ?? raw.feature_type) ? "error" : "feature";
  if (KINDS.includes(raw.kind)) return raw.kind;
  const type = raw.feature_type.toLowerCase();
  return ["logit", "embedding", "error", "bias"].find((k) => type.includes(k)) ?? "feature";
}

// Ids spell the feature out; only foreign ids fall back on undoing the pairing of (layer, feature) in `feature`.
function featureOf(raw) {
  const spelt = /^A?\d+_(?:\w+_)?(\d+)_\d+$/.exec(raw.node_id);
  if (spelt) return Number(spelt[1]);
  const z = raw.feature;
  if (!Number.isInteger(z) || z < 0) return null;
  const diagonal = Math.floor((Math.sqrt(8 * z + 1) - 1) / 2);
  return z - (diagonal * (diagonal + 1)) / 2;
}

const ROW_EMBED = -1;
const ROW_LOGIT = Infinity;

// row: -1 for the embedding row, the layer number, or infinity for the logits. Leaves of the unembedding
// belong to no layer; they go to the highest one.
function placeInRows(nodes) {
  const layerOf = (n) => (String(n.raw.layer).toUpperCase() === "E" ? ROW_EMBED : Number.parseInt(n.raw.layer, 10));
  const inner = (n) => n.kind === "feature" || n.kind === "error" || n.kind === "head";
  const top = nodes.reduce((m, n) => (inner(n) ? Math.max(m, layerOf(n)) : m), ROW_EMBED);
  for (const n of nodes) {
    const layer = layerOf(n);
    if (n.kind === "logit") n.row = ROW_LOGIT;
    else if (n.kind === "embedding" || n.kind === "position") n.row = ROW_EMBED;
    else n.row = (Number.isFinite(layer) ? Math.min(layer, top) : top) - (n.attention ? 0.5 : 0);
  }
}

const rowName = (row) =>
  row === ROW_LOGIT ? "out" : row === ROW_EMBED ? "emb" : Number.isInteger(row) ? `L${row}` : `A${Math.ceil(row)}`;
// Of a feature, as cards and searches name it: 3_17, and A3_17 where it is of attention.
const layerName = (n) => rowName(n.row).replace(/^L/, "");

// Links by end, as rows of one array: start[i] .. start[i + 1] are the links at node i.
function groupBy(ends, n) {
  const start = new Int32Array(n + 1);
  for (const i of ends) start[i + 1]++;
  for (let i = 0; i < n; i++) start[i + 1] += start[i];
  const next = start.slice();
  const order = new Int32Array(ends.length);
  for (let e = 0; e < ends.length; e++) order[next[ends[e]]++] = e;
  return { of: (i) => order.subarray(start[i], start[i + 1]) };
}

function labelOf(n) {
  const at = n.row === ROW_EMBED ? "" : rowName(n.row);
  switch (n.kind) {
    case "group": return visible(n.name);
    case "logit": return visible(n.token);
    case "embedding": return visible(n.token);
    case "position": return `position ${n.pos}`;
    case "error": return n.name ? visible(n.name) : `error ${at}`;
    case "head": return `${at} head ${(/_head_(\d+)/.exec(n.id) || ["", ""])[1]}`;
    case "skip": return `skip ${at}`;
    case "bias": return n.name ? visible(n.name) : `${(/_bias_(\w+?)_\d+$/.exec(n.id) || ["", ""])[1]} bias ${at}`.trim();
    case "own": return "own bias";
    default: return n.name ? visible(n.name) : n.feature === null ? visible(n.id) : `${at}·${n.feature}`;
  }
}

function haystackOf(n) {
  const spelt = n.feature === null ? "" : `${layerName(n)}:${n.feature} ${n.feature}`;
  return `${n.token ?? ""} ${n.name} ${n.label} ${spelt} ${n.id}`.toLowerCase();
}

// Last, since reading needs the constants above.
const graph = readGraph();
// What a node's inputs sum to; of path graphs, what it contributes to their root.
const VALUE = graph.metadata.value_name ?? "Pre-activation";
