// Nodes as SVG symbols: one element a node, made when first shown, moved by transform, styled by class.

const world = $("world");
const SHAPES = {
  feature: "M-1 0a1 1 0 1 0 2 0a1 1 0 1 0-2 0z",
  embedding: "M-.88-.88h1.76v1.76h-1.76z",
  position: "M-.66-.66h1.32v1.32h-1.32z",
  head: "M-1.1 0L-.55-.95H.55L1.1 0 .55.95H-.55z",
  skip: "M-.9-.3H.9V.3H-.9z",
  error: "M0-1.18L1.18 0 0 1.18-1.18 0z",
  bias: "M0-.95L.9.65H-.9z",
  own: "M0 .85L.75-.55H-.75z",
  group: "M-1.1-1h2.2a1 1 0 0 1 0 2h-2.2a1 1 0 0 1 0-2z",
};
const KIND_NAMES = {
  feature: "Feature", embedding: "Token embedding", position: "Position embedding",
  head: "Attention head", skip: "Skip connection", error: "Error of the transcoder",
  bias: "Bias", own: "Own bias", logit: "Output logit", group: "Supernode",
};
function kindName(n) {
  const what = n.kind === "error" ? "Error of the autoencoder" : KIND_NAMES[n.kind];
  return n.attention ? `${what} of attention` : KIND_NAMES[n.kind];
}
const elements = new Array(graph.nodes.length);
let lit = [];

function elementOf(i) {
  if (elements[i]) return elements[i];
  const n = graph.nodes[i];
  const attributes = { class: `node ${n.kind} ${lookOf(n)}`.trim(), tabindex: "-1", role: "button", "aria-label": spoken(n) };
  const element = svg(n.kind === "logit" ? "g" : "path", attributes);
  if (n.kind !== "logit") element.setAttribute("d", SHAPES[n.kind]);
  element.dataset.i = i;
  element.dataset.id = n.id;
  elements[i] = element;
  return element;
}

// The class that colours a node: of two graphs the one that has it, of supernodes each its own.
const lookOf = (n) => (n.side ? `only-${n.side}` : n.kind === "group" ? `tint-${(n.i - graph.size) % 5}` : "");

function spoken(n) {
  const where = n.row === ROW_EMBED || n.kind === "logit" ? "" : `, layer ${Math.ceil(n.row)}`;
  const what = n.feature === null ? "" : ` ${n.feature}`;
  const share = n.kind === "logit" ? `, probability ${percent(n.probability)}` : "";
  if (n.kind === "group") return `Supernode ${n.label}, ${n.members.length} nodes${where}`;
  const name = n.kind === "position" || n.kind === "error" || n.kind === "bias" || n.kind === "own" ? "" : ` ${n.label}`;
  return `${kindName(n)}${what}${name}${share}${where}, position ${n.pos}, token ${visible(graph.tokens[n.pos])}`;
}

function placeNodes(place, shown) {
  world.setAttribute("width", place.width);
  world.setAttribute("height", place.height);
  const pills = new Map(place.pills.map((p) => [p.i, p]));
  const order = shown.slice().sort(inReadingOrder);
  for (const n of order) {
    const element = elementOf(n.i);
    if (n.kind === "logit") shapePill(element, pills.get(n.i));
    const at = `translate(${place.x[n.i].toFixed(1)} ${place.y[n.i].toFixed(1)})`;
    element.setAttribute("transform", n.kind === "logit" ? at : `${at} scale(${sizeOf(n, place.radius).toFixed(2)})`);
  }
  putInOrder($("nodes"), order.map((n) => elements[n.i]));
  if (!order.some((n) => n.i === state.current)) state.current = -1;
  makeDoor(state.current >= 0 ? state.current : order.at(-1)?.i ?? -1);
}

// Document order is reading order: upwards, then along the prompt. It does not depend on the layout, so that few
// elements move when others come and go.
function inReadingOrder(m, n) {
  return m.row - n.row || m.pos - n.pos || inCellOrder(m, n);
}

// Makes these the children of an element; those that stay are not touched, since each that is costs a new drawing.
function putInOrder(parent, wanted) {
  const stay = new Set(wanted);
  for (const child of [...parent.children]) if (!stay.has(child)) child.remove();
  let next = parent.firstChild;
  for (const child of wanted) {
    if (child === next) next = next.nextSibling;
    else parent.insertBefore(child, next);
  }
}

// The one node by which the Tab key enters the graph; arrow keys do the rest.
function makeDoor(i) {
  for (const old of world.querySelectorAll("[tabindex='0']")) old.setAttribute("tabindex", "-1");
  if (i >= 0) elements[i].setAttribute("tabindex", "0");
}

// The more of the output a feature carries, the larger it is drawn; leaves stay small.
function sizeOf(n, radius) {
  if (n.kind === "group") return radius * 1.45;
  if (n.kind === "bias" || n.kind === "own" || n.kind === "position") return radius * 0.85;
  if (n.kind !== "feature" || n.influence === null) return radius;
  return radius * (1.12 - 0.34 * n.influence);
}

function shapePill(element, pill) {
  const n = graph.nodes[pill.i];
  const left = -pill.width / 2;
  const half = pill.height / 2;
  element.replaceChildren();
  svg("rect", { class: "pill", x: left, y: -half, width: pill.width, height: pill.height, rx: half }, element);
  const chance = Math.max(2, (pill.width - pill.height) * Math.min(1, n.probability));
  svg("rect", { class: "chance", x: left + half, y: half - 4, width: chance, height: 2, rx: 1 }, element);
  svg("text", { class: "word", x: left + PILL.pad, y: 4 }, element).textContent = `\u2068${pill.text}\u2069`;
  svg("text", { class: "share", x: left + PILL.pad + pill.wordWidth + 7, y: 4 }, element).textContent = pill.share;
}

// Marks selection, pins, finds and positions on the elements; cheap enough to do over all that are shown.
function markNodes(shown) {
  world.classList.toggle("searching", state.hitSet.size > 0);
  for (const n of shown) {
    const element = elements[n.i];
    element.classList.toggle("selected", n.i === state.selected);
    element.classList.toggle("pinned", state.pinned.has(n.i));
    element.classList.toggle("chosen", state.chosen.has(n.i));
    element.classList.toggle("hit", state.hitSet.has(n.i));
    element.classList.toggle("off", !inFocus(n.i));
    element.setAttribute("aria-pressed", String(n.i === state.selected));
  }
}

// Dims all but a node and its neighbours, which take the colour of their link, by its share.
function litNeighbours(i, list) {
  for (const element of lit) {
    element.classList.remove("lit", "positive", "negative");
    element.style.removeProperty("--share");
  }
  lit = [];
  $("stage").classList.toggle("focused", i >= 0);
  if (i < 0) return;
  const light = (j, e) => {
    if (!elements[j]) return;
    elements[j].classList.add("lit");
    if (e >= 0 && !differing()) {
      elements[j].classList.add(graph.links.weight[e] < 0 ? "negative" : "positive");
      elements[j].style.setProperty("--share", (0.3 + 0.7 * Math.sqrt(graph.links.share[e])).toFixed(2));
    }
    lit.push(elements[j]);
  };
  const centre = new Set(stands(i) ? [i] : graph.nodes[i].members ?? [i]);
  const { source, target } = graph.links;
  for (const e of list) light(centre.has(target[e]) ? source[e] : target[e], e);
  for (const j of centre) light(j, -1);
}

// The node whose symbol is at, or close to, a point of the graph; small symbols get a generous reach.
function nodeAt(place, shown, px, py) {
  const reach = Math.max(11, place.radius + 5);
  for (const p of place.pills) {
    if (Math.abs(px - place.x[p.i]) <= p.width / 2 && Math.abs(py - place.y[p.i]) <= p.height / 2) return p.i;
  }
  let nearest = -1;
  let least = reach * reach;
  for (const n of shown) {
    if (n.kind === "logit") continue;
    const d = (place.x[n.i] - px) ** 2 + (place.y[n.i] - py) ** 2;
    if (d < least) { least = d; nearest = n.i; }
  }
  return nearest;
}
