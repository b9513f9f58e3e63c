// Notes: the pins, labels and supernodes that the reader adds, in the form of the file's qParams, and where they are
// kept: beside the graph when it is served, else in this browser. They can be taken out and in as a JSON file.

const takeable = ["pinnedIds", "supernodes", "clerps"];
let own = ""; // the notes of the file itself
let kept = "";

function notes() {
  const idOf = (i) => graph.nodes[i].id;
  return {
    pinnedIds: Array.from(state.pinned).filter((i) => i < graph.size).map(idOf),
    supernodes: state.groups.map(({ name, members }) => [name, ...members.map(idOf)]),
    clerps: JSON.stringify([...state.labels]),
  };
}

function takeNotes(params) {
  state.pinned = new Set(knownIds(params.pinnedIds ?? []));
  state.groups = [];
  const taken = new Set();
  for (const [name, ...ids] of params.supernodes ?? []) {
    // A node is in one supernode at most: the first that names it.
    const members = [...new Set(knownIds(ids))].filter((i) => !taken.has(i));
    for (const i of members) taken.add(i);
    if (members.length) state.groups.push({ name, members });
  }
  state.labels = new Map();
  for (const n of graph.nodes.slice(0, graph.size)) if (n.name !== n.given) relabel(n, n.given);
  for (const [id, label] of pairsOf(params.clerps)) setLabel(graph.byId.get(id), label);
  regroup();
}

// Viewers of this format keep labels as pairs (id, label), or as the JSON text of such pairs.
function pairsOf(clerps) {
  try {
    const pairs = typeof clerps === "string" ? JSON.parse(clerps || "[]") : clerps ?? [];
    return Array.isArray(pairs) ? pairs.filter((p) => Array.isArray(p) && p.length === 2 && typeof p[1] === "string") : [];
  } catch {
    return [];
  }
}

// A feature has one label, at whatever positions it is active.
function setLabel(i, label) {
  if (i === undefined || i >= graph.size) return;
  const n = graph.nodes[i];
  const same = (m) => m === n || (n.feature !== null && m.feature === n.feature && m.row === n.row && m.kind === n.kind);
  for (const m of graph.nodes.slice(0, graph.size).filter(same)) {
    relabel(m, label.trim() || m.given);
    if (m.name === m.given) state.labels.delete(m.id);
    else state.labels.set(m.id, m.name);
  }
}

function relabel(n, name) {
  rename(n, name);
  elements[n.i]?.setAttribute("aria-label", spoken(n));
}

// Stored notes belong to one graph with one set of notes in its file: a file with other notes starts anew.
function storageKey() {
  let hash = 5381;
  const text = JSON.stringify([graph.metadata.scan, graph.tokens, graph.nodes.slice(0, graph.size).map((n) => n.id), own]);
  for (let k = 0; k < text.length; k++) hash = (Math.imul(hash, 33) ^ text.charCodeAt(k)) >>> 0;
  return `pullback:notes:${hash.toString(36)}:${text.length.toString(36)}`;
}

function openNotes() {
  for (const n of graph.nodes) n.given = n.name;
  takeNotes(graph.params);
  own = kept = JSON.stringify(notes());
  const stored = graph.served ? null : storage.read(storageKey());
  if (stored) takeNotes({ ...graph.params, ...JSON.parse(stored) });
  kept = JSON.stringify(notes());
}

// After every change; the same notes are not written twice.
function keepNotes() {
  const text = JSON.stringify(notes());
  $("reset-notes").disabled = text === own;
  if (text === kept) return;
  kept = text;
  if (graph.served) saveToServer(text);
  else storage.write(storageKey(), text === own ? null : text);
}

function resetNotes() {
  takeNotes(graph.served ? JSON.parse(own) : graph.params);
  state.selected = -1;
  refresh();
}

function downloadNotes() {
  const qParams = {
    ...graph.params, ...notes(), pruningThreshold: state.threshold,
    clickedId: state.selected >= 0 ? graph.nodes[state.selected].id : "",
  };
  download(`${graph.metadata.slug}.notes.json`, "application/json", JSON.stringify({ qParams }, null, 1));
}

// A file of notes, or a whole graph JSON.
async function loadNotes(blob) {
  try {
    const { qParams } = JSON.parse(await blob.text());
    if (!qParams || takeable.every((key) => !(key in qParams))) throw new Error("no qParams");
    takeNotes(qParams);
    state.selected = -1;
    refresh();
    say("Notes loaded");
  } catch {
    say("This file holds no notes: a JSON file with qParams is needed");
  }
}

let saying = 0;

// A sentence for the eye and the ear, for a few seconds.
function say(text) {
  $("announce").textContent = text;
  $("said").textContent = text;
  $("said").hidden = false;
  clearTimeout(saying);
  saying = setTimeout(() => { $("said").hidden = true; }, 4000);
}
