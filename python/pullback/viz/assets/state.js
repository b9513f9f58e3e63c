// What the reader has chosen, which nodes that leaves on the page, and its record in the address.

const state = {
  selected: -1, hovered: -1, current: -1, // current: where the keyboard stands
  edge: -1, // the link under the pointer
  pinned: new Set(), chosen: new Set(), // chosen: to become a supernode
  positions: new Set(), hits: [], hitSet: new Set(),
  threshold: 0.8, errors: true, biases: false,
  groups: [], collapsed: false, labels: new Map(), // labels: by node id, where they are not the file's
  view: "difference", // of two graphs: "a", "b" or their difference
  zoom: 1,
};
const ALWAYS = new Set(["embedding", "position", "logit", "group"]);

function isShown(n) {
  if (!stands(n.i) || !inView(n)) return false;
  if (n.i === state.selected || state.pinned.has(n.i) || state.chosen.has(n.i) || ALWAYS.has(n.kind)) return true;
  if (n.kind === "error" && !state.errors) return false;
  if ((n.kind === "bias" || n.kind === "own") && !state.biases) return false;
  if (n.owner >= 0 && !isShown(graph.nodes[standIn(n.owner)])) return false;
  return n.influence === null || n.influence <= state.threshold + 1e-9;
}

function inFocus(i) {
  return state.positions.size === 0 || state.positions.has(graph.nodes[i].pos);
}

// "3:512" is one feature; digits alone are the beginning of a feature id; anything else is looked for everywhere.
function find(query) {
  const q = query.trim().toLowerCase();
  if (!q) return [];
  const pair = /^l?(a?\d+)\s*[:·/_]\s*(\d+)$/.exec(q);
  if (pair) return indices((n) => n.feature === Number(pair[2]) && layerName(n) === pair[1].toUpperCase());
  const begins = (n) => n.feature !== null && String(n.feature).startsWith(q);
  if (/^\d+$/.test(q)) return indices((n) => begins(n) || n.label.toLowerCase().includes(q));
  return indices((n) => n.haystack.includes(q));
}

function indices(keep) {
  return graph.nodes.filter(keep).map((n) => n.i);
}

function knownIds(ids) {
  return ids.map((id) => graph.byId.get(id)).filter((i) => i !== undefined);
}

function asThreshold(value) {
  const x = value === null || value === undefined || value === "" ? NaN : Number(value);
  return x >= 0 && x <= 1.01 ? Math.min(1, x) : null;
}

// The address wins over the notes and the file, the file over the defaults.
function restore() {
  const params = graph.params;
  const hash = new URLSearchParams(location.hash.slice(1));
  if (hash.has("pinnedIds")) state.pinned = new Set(knownIds(hash.get("pinnedIds").split(",")));
  const clicked = hash.has("clickedId") ? hash.get("clickedId") : params.clickedId ?? "";
  state.selected = graph.byId.get(clicked) ?? -1;
  state.current = state.selected;
  state.collapsed = hash.get("collapsed") === "true" && state.groups.length > 0;
  state.threshold = asThreshold(hash.get("pruningThreshold")) ?? asThreshold(params.pruningThreshold) ?? 0.8;
}

function address() {
  const hash = new URLSearchParams();
  hash.set("pinnedIds", Array.from(state.pinned, (i) => graph.nodes[i].id).join(","));
  hash.set("clickedId", state.selected < 0 ? "" : graph.nodes[state.selected].id);
  hash.set("pruningThreshold", String(state.threshold));
  if (state.collapsed) hash.set("collapsed", "true");
  return `#${hash}`;
}

let written = null;
let writing = 0;

// A moment later, once for many changes: browsers stop pages that write their address without pause.
function record() {
  writing ||= setTimeout(() => {
    writing = 0;
    keepNotes();
    const text = address();
    if (text === written) return;
    written = text;
    try {
      history.replaceState(null, "", text);
    } catch {
      // A page inside an iframe's srcdoc has no address of its own to write to.
    }
  }, 200);
}
