// What the reader has chosen, which nodes that leaves on the page, and its record in the address.

const state = {
  selected: -1, hovered: -1, current: -1, // current: where the keyboard stands
  pinned: new Set(), positions: new Set(), hits: [], hitSet: new Set(),
  threshold: 0.8, errors: true, biases: false,
};
const ALWAYS = new Set(["embedding", "position", "logit"]);

function isShown(n) {
  if (n.i === state.selected || state.pinned.has(n.i) || ALWAYS.has(n.kind)) return true;
  if (n.kind === "error" && !state.errors) return false;
  if ((n.kind === "bias" || n.kind === "own") && !state.biases) return false;
  if (n.owner >= 0 && !isShown(graph.nodes[n.owner])) return false;
  return n.influence === null || n.influence <= state.threshold + 1e-9;
}

function inFocus(i) {
  return state.positions.size === 0 || state.positions.has(graph.nodes[i].pos);
}

// "3:512" is one feature; digits alone are the beginning of a feature id; anything else is looked for everywhere.
function find(query) {
  const q = query.trim().toLowerCase();
  if (!q) return [];
  const pair = /^l?(\d+)\s*[:·/_]\s*(\d+)$/.exec(q);
  if (pair) return indices((n) => n.feature === Number(pair[2]) && n.row === Number(pair[1]));
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

// The address wins over the file, the file over the defaults.
function restore() {
  const params = graph.params;
  const hash = new URLSearchParams(location.hash.slice(1));
  const pinned = hash.has("pinnedIds") ? hash.get("pinnedIds").split(",") : params.pinnedIds ?? [];
  const clicked = hash.has("clickedId") ? hash.get("clickedId") : params.clickedId ?? "";
  state.pinned = new Set(knownIds(pinned));
  state.selected = graph.byId.get(clicked) ?? -1;
  state.current = state.selected;
  state.threshold = asThreshold(hash.get("pruningThreshold")) ?? asThreshold(params.pruningThreshold) ?? 0.8;
}

function address() {
  const hash = new URLSearchParams();
  hash.set("pinnedIds", Array.from(state.pinned, (i) => graph.nodes[i].id).join(","));
  hash.set("clickedId", state.selected < 0 ? "" : graph.nodes[state.selected].id);
  hash.set("pruningThreshold", String(state.threshold));
  return `#${hash}`;
}

let written = null;
let writing = 0;

// A moment later, once for many changes: browsers stop pages that write their address without pause.
function record() {
  writing ||= setTimeout(() => {
    writing = 0;
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
