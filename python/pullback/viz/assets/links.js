// Links on two canvases: all links between the nodes shown (quiet), and above them those of the node in focus.
// Both are as large as the window onto the graph, not as the graph, and are drawn anew on scrolling.

const MOST_LINKS = 5000;
const MOVING_LINKS = 1200;
const DASHED_LINKS = 400; // dashes of more would be lost in the crowd, and cost more than the links
const LEVELS = 8;
const base = { canvas: $("links"), list: new Int32Array(0), between: 0 };
const focus = { canvas: $("focus-links"), list: [] };
let ink = {};

function readColours() {
  const probe = h("i", { hidden: true });
  document.body.append(probe);
  const resolved = (name) => { probe.style.color = `var(--${name})`; return getComputedStyle(probe).color; };
  ink = Object.fromEntries(["positive", "negative", "only-a", "only-b", "paper", "band", "line", "ink", "ink-soft"].map((name) => [name, resolved(name)]));
  probe.remove();
}

// The links worth drawing: between shown nodes and, past the cap, the heaviest.
function chooseLinks(isShownAt) {
  const { source, target, order } = graph.links;
  const list = [];
  base.between = 0;
  for (const e of order) {
    if (!isShownAt[source[e]] || !isShownAt[target[e]] || !(inFocus(source[e]) || inFocus(target[e]))) continue;
    base.between++;
    if (list.length < MOST_LINKS) list.push(e);
  }
  base.list = Int32Array.from(list);
}

function sizeCanvases(width, height) {
  const ratio = window.devicePixelRatio || 1;
  for (const { canvas } of [base, focus]) {
    canvas.width = Math.max(1, Math.round(width * ratio));
    canvas.height = Math.max(1, Math.round(height * ratio));
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
}

function pen(canvas) {
  const context = canvas.getContext("2d");
  const ratio = window.devicePixelRatio || 1;
  const { left, top } = scrolled();
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.setTransform(ratio, 0, 0, ratio, -left * ratio, -top * ratio);
  context.lineCap = "round";
  return context;
}

// A link leaves upwards and arrives from below, so that crossings are steep and ends are vertical.
const BEND = 0.45;

function trace(context, place, e) {
  const s = graph.links.source[e];
  const t = graph.links.target[e];
  const bend = (place.y[s] - place.y[t]) * BEND;
  context.moveTo(place.x[s], place.y[s]);
  context.bezierCurveTo(place.x[s], place.y[s] - bend, place.x[t], place.y[t] + bend, place.x[t], place.y[t]);
}

// Links of like look are one path: a few strokes in all, however many links. Calls draw(style, links) weakest first.
function inBuckets(list, strength, draw) {
  const buckets = new Map();
  for (const e of list) {
    const level = Math.min(LEVELS - 1, Math.floor(Math.sqrt(graph.links.share[e]) * LEVELS * 1.2));
    const look = { level, negative: suppresses(e), colour: colourOf(e) };
    const key = `${level} ${look.negative} ${look.colour}`;
    if (!buckets.has(key)) buckets.set(key, { ...look, links: [] });
    buckets.get(key).links.push(e);
  }
  for (const { level, negative, colour, links } of [...buckets.values()].sort((a, b) => a.level - b.level)) {
    const part = (level + 0.5) / LEVELS;
    draw({
      colour: ink[colour], alpha: Math.min(1, strength.alpha * (strength.floor + part)), width: strength.width * (0.35 + 4.2 * part),
      // Sign is told twice: suppression is dashed wherever single links can be made out.
      dash: strength.dashed && negative ? [5, 4] : [],
    }, links);
  }
}

function drawBuckets(context, place, list, strength) {
  inBuckets(list, strength, (style, links) => {
    context.strokeStyle = style.colour;
    context.globalAlpha = style.alpha;
    context.lineWidth = style.width;
    context.setLineDash(style.dash);
    context.beginPath();
    for (const e of links) trace(context, place, e);
    context.stroke();
  });
}

// The fewer links, the stronger each, down to dashes for the negative ones.
function baseStrength(count) {
  const crowd = Math.max(0.12, Math.min(1, 500 / Math.max(1, count)));
  return { alpha: 0.85 * Math.sqrt(crowd), floor: 0.06, width: 0.5 + 0.5 * crowd, dashed: count <= DASHED_LINKS };
}

function focusStrength(count) {
  const scale = count > 300 ? 0.75 : 1;
  return { alpha: 0.95 * scale, floor: 0.28, width: 1.15 * scale, dashed: true };
}

// While the graph moves, only the strongest links that meet the window are drawn; all of them once it rests.
function drawBase(place, moving = false) {
  const { left, top } = scrolled();
  const [width, height] = measured();
  const [right, bottom] = [left + width, top + height];
  const { source, target } = graph.links;
  const meets = (e) => {
    const [s, t] = [source[e], target[e]];
    return Math.max(place.x[s], place.x[t]) >= left && Math.min(place.x[s], place.x[t]) <= right
      && place.y[s] >= top && place.y[t] <= bottom;
  };
  const list = moving ? base.list.subarray(0, MOVING_LINKS) : base.list;
  drawBuckets(pen(base.canvas), place, list.filter(meets), baseStrength(base.list.length));
}

function drawFocus(place, i, isShownAt) {
  const context = pen(focus.canvas);
  focus.list = i < 0 || !place ? [] : linksOf(i, isShownAt);
  drawBuckets(context, place, focus.list, focusStrength(focus.list.length));
  if (state.edge >= 0) drawBuckets(context, place, [state.edge], { alpha: 1, floor: 1, width: 2.2, dashed: true });
}

// The links of a node that can be drawn; of a supernode that is not collapsed, those of its members.
function linksOf(i, isShownAt) {
  const { source, target } = graph.links;
  const members = stands(i) ? [i] : graph.nodes[i].members ?? [];
  const both = members.flatMap((m) => [...graph.inputs.of(m), ...graph.outputs.of(m)]);
  return both.filter((e) => isShownAt[source[e]] && isShownAt[target[e]]);
}

// How far up a link is at each height between its ends: the same curve for all, so one table serves.
const RISE = Float32Array.from({ length: 257 }, (_, k) => {
  let [low, high] = [0, 1];
  for (let step = 0; step < 20; step++) {
    const t = (low + high) / 2;
    const height = 3 * (1 - t) ** 2 * t * BEND + 3 * (1 - t) * t * t * (1 - BEND) + t ** 3;
    if (height < k / 256) low = t;
    else high = t;
  }
  return (low + high) / 2;
});

// The drawn link nearest to a point, within a few pixels; those in focus, where some are.
function linkAt(place, px, py) {
  const { source, target } = graph.links;
  let nearest = -1;
  let least = 4;
  for (const e of focus.list.length ? focus.list : base.list) {
    const [s, t] = [source[e], target[e]];
    const rise = place.y[s] - place.y[t];
    const height = (place.y[s] - py) / rise;
    if (!(height > 0 && height < 1)) continue;
    const u = RISE[Math.round(height * 256)];
    const run = place.x[t] - place.x[s];
    const aside = Math.abs(place.x[s] + run * u * u * (3 - 2 * u) - px);
    // Where a link lies flat, aside is far along it: measure across.
    const slope = (run * 6 * u * (1 - u)) / (rise * 3 * ((1 - u) ** 2 * BEND + 2 * u * (1 - u) * (1 - 2 * BEND) + u * u * BEND));
    const d = aside / Math.sqrt(1 + slope * slope);
    if (d < least) { least = d; nearest = e; }
  }
  return nearest;
}
