// Puts it together: one function brings the page in line with the state, smaller ones redraw parts of it.

let place = null;
let shown = [];
const shownAt = new Uint8Array(graph.nodes.length);

const currentPlace = () => place;
const shownNodes = () => shown;
const shownNow = (i) => shownAt[i] === 1;

function refresh() {
  shown = graph.nodes.filter(isShown);
  shownAt.fill(0);
  for (const n of shown) shownAt[n.i] = 1;
  drawLegend();
  if (arrange()) {
    chooseLinks(shownAt);
    redraw();
  }
  markNodes(shown);
  drawLabels(place, shownAt);
  drawPanel();
  refocus();
  drawCounts();
  record();
}

let arranged = "";

// Lays out again only if the nodes shown, the size, or the emphasised positions have changed; says whether it did.
function arrange() {
  const measureNow = () => [$("scroll").clientWidth, $("scroll").clientHeight];
  const key = `${measureNow()} ${[...state.positions]} ${shown.map((n) => n.i)}`;
  if (key === arranged) return false;
  const focused = document.activeElement?.closest?.(".node")?.dataset.i;
  place = layout(shown, ...measureNow());
  // Upright tokens need a taller row, which leaves less height to the graph. If they turn out needless then, the room stays.
  if (place.columns[0].upright !== $("stage").classList.contains("upright")) {
    $("stage").classList.toggle("upright", place.columns[0].upright);
    place = layout(shown, ...measureNow());
    if (place.columns[0].upright) $("stage").classList.add("upright");
  }
  sizeCanvases(...measureNow());
  placeNodes(place, shown);
  drawTokens(place);
  drawGrid(place);
  if (focused !== undefined && shownAt[focused]) elements[focused].focus({ preventScroll: true });
  arranged = `${measureNow()} ${[...state.positions]} ${shown.map((n) => n.i)}`;
  return true;
}

function redraw() {
  const { scrollLeft, scrollTop } = $("scroll");
  $("tokens-inner").style.transform = `translateX(${-scrollLeft}px)`;
  $("axis-inner").style.transform = `translateY(${-scrollTop}px)`;
  $("grid-inner").style.transform = `translate(${-scrollLeft}px, ${-scrollTop}px)`;
  drawBase(place);
  drawFocus(place, inQuestion(), shownAt);
}

const inQuestion = () => (state.hovered >= 0 ? state.hovered : state.selected);

// The node under the pointer, or else the selected one, stands out with its neighbours.
function refocus() {
  if (state.hovered >= 0 && !shownAt[state.hovered]) state.hovered = -1;
  litNeighbours(inQuestion());
  drawFocus(place, inQuestion(), shownAt);
  showTooltip(place, state.hovered);
}

function drawCounts() {
  const many = (x) => x.toLocaleString("en");
  const drawn = base.list.length < base.between ? ` (${many(base.list.length)} strongest drawn)` : "";
  const ofNodes = `${many(shown.length)} of ${many(graph.nodes.length)} nodes`;
  $("counts").textContent = `${ofNodes} · ${many(base.between)} of ${many(graph.links.count)} links${drawn}`;
  $("empty").hidden = graph.nodes.some((n) => n.kind === "feature");
  $("empty").textContent = "This graph has no feature nodes.";
}

function start() {
  restore();
  for (const [kinds, id] of [[["error"], "show-errors"], [["bias", "own"], "show-biases"]]) {
    $(id).disabled = !graph.nodes.some((n) => kinds.includes(n.kind));
  }
  written = address();
  showThreshold();
  readColours();
  drawHeading();
  refresh();
  listenToPointer();
  listenToGraphKeys();
  listenToPageKeys();
  listenToToolbar();
  listenToLists();
  // The window's own changes are followed at once; what else may move the plot (a wrapped legend) after this turn,
  // since laying out inside an observer's call may resize what it observes.
  window.addEventListener("resize", refresh);
  new ResizeObserver(() => setTimeout(refresh)).observe($("plot"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColours(); redraw(); });
  window.addEventListener("hashchange", () => { restore(); showThreshold(); refresh(); });
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
}

function showThreshold() {
  $("threshold").value = state.threshold;
  $("threshold-value").textContent = percent(state.threshold);
}

start();
