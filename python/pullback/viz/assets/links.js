// Links on two canvases: all links between the nodes shown (quiet), and above them those of the node in focus.
// Both are as large as the window onto the graph, not as the graph, and are drawn anew on scrolling.

const MOST_LINKS = 5000;
const LEVELS = 8;
const base = { canvas: $("links"), list: new Int32Array(0), between: 0 };
const focus = { canvas: $("focus-links") };
let ink = {};

function readColours() {
  const style = getComputedStyle(document.documentElement);
  ink = { positive: style.getPropertyValue("--positive").trim(), negative: style.getPropertyValue("--negative").trim() };
}

// The links worth drawing: between shown nodes and, past the cap, the heaviest.
function chooseLinks(isShownAt) {
  const { source, target, weight, count } = graph.links;
  const kept = new Int32Array(count);
  let n = 0;
  for (let e = 0; e < count; e++) {
    if (isShownAt[source[e]] && isShownAt[target[e]] && (inFocus(source[e]) || inFocus(target[e]))) kept[n++] = e;
  }
  base.between = n;
  let list = kept.subarray(0, n);
  if (n > MOST_LINKS) {
    const cut = Float64Array.from(list, (e) => Math.abs(weight[e])).sort()[n - MOST_LINKS];
    list = list.filter((e) => Math.abs(weight[e]) >= cut).subarray(0, MOST_LINKS);
  }
  base.list = list;
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
  const scroll = $("scroll");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.setTransform(ratio, 0, 0, ratio, -scroll.scrollLeft * ratio, -scroll.scrollTop * ratio);
  context.lineCap = "round";
  return context;
}

// A link leaves upwards and arrives from below, so that crossings are steep and ends are vertical.
function trace(context, place, e) {
  const s = graph.links.source[e];
  const t = graph.links.target[e];
  const bend = (place.y[s] - place.y[t]) * 0.45;
  context.moveTo(place.x[s], place.y[s]);
  context.bezierCurveTo(place.x[s], place.y[s] - bend, place.x[t], place.y[t] + bend, place.x[t], place.y[t]);
}

// Links of like sign and strength are one path: a few strokes in all, however many links.
function drawBuckets(context, place, list, strength) {
  const buckets = new Map();
  for (const e of list) {
    const level = Math.min(LEVELS - 1, Math.floor(Math.sqrt(graph.links.share[e]) * LEVELS * 1.2));
    const key = graph.links.weight[e] < 0 ? -1 - level : level;
    if (!buckets.has(key)) buckets.set(key, []);
    buckets.get(key).push(e);
  }
  const weakFirst = [...buckets.keys()].sort((a, b) => Math.max(a, -1 - a) - Math.max(b, -1 - b));
  for (const key of weakFirst) {
    const level = (Math.max(key, -1 - key) + 0.5) / LEVELS;
    context.strokeStyle = key < 0 ? ink.negative : ink.positive;
    context.globalAlpha = Math.min(1, strength.alpha * (strength.floor + level));
    context.lineWidth = strength.width * (0.35 + 4.2 * level);
    // Sign is told twice: suppression is dashed wherever single links can be made out.
    context.setLineDash(strength.dashed && key < 0 ? [5, 4] : []);
    context.beginPath();
    for (const e of buckets.get(key)) trace(context, place, e);
    context.stroke();
  }
}

function drawBase(place) {
  const crowd = Math.max(0.12, Math.min(1, 500 / Math.max(1, base.list.length)));
  const strength = { alpha: 0.85 * Math.sqrt(crowd), floor: 0.06, width: 0.5 + 0.5 * crowd, dashed: false };
  drawBuckets(pen(base.canvas), place, base.list, strength);
}

function drawFocus(place, i, isShownAt) {
  const context = pen(focus.canvas);
  if (i < 0 || !place) return;
  const { source, target } = graph.links;
  const list = [...graph.inputs.of(i), ...graph.outputs.of(i)].filter((e) => isShownAt[source[e]] && isShownAt[target[e]]);
  const scale = list.length > 300 ? 0.75 : 1;
  drawBuckets(context, place, list, { alpha: 0.95 * scale, floor: 0.28, width: 1.15 * scale, dashed: true });
}
