// Puts it together: one function brings the page in line with the state, smaller ones redraw parts of it.

let place = null;
let shown = [];
let shownAt = new Uint8Array(0);
// Size of the window onto the graph and how far it is scrolled. Asking the page costs a layout of all its nodes, so it
// is asked only when they can have changed.
let size = null;
let offset = { left: 0, top: 0 };

const currentPlace = () => place;
const shownNodes = () => shown;
const shownNow = (i) => shownAt[i] === 1;

function refresh() {
  shown = graph.nodes.filter(isShown);
  if (shownAt.length !== graph.nodes.length) shownAt = new Uint8Array(graph.nodes.length);
  shownAt.fill(0);
  for (const n of shown) shownAt[n.i] = 1;
  $("collapse").checked = state.collapsed;
  $("collapse").disabled = !state.groups.length;
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

// Lays out again only if the nodes shown, their links, the size, or the emphasised positions have changed; says
// whether it did.
function arrange() {
  const keyNow = () => `${measured()} ${state.zoom} ${state.view} ${[...state.positions]} ${shown.map((n) => n.i)} ${groupsKey()}`;
  if (keyNow() === arranged) return false;
  const focused = document.activeElement?.closest?.(".node")?.dataset.i;
  place = layout(shown, ...zoomed());
  // Upright tokens need a taller row, which leaves less height to the graph. If they turn out needless then, the room stays.
  if (place.columns[0].upright !== $("stage").classList.contains("upright")) {
    $("stage").classList.toggle("upright", place.columns[0].upright);
    size = null;
    place = layout(shown, ...zoomed());
    if (place.columns[0].upright) $("stage").classList.add("upright");
    size = null;
  }
  sizeCanvases(...measured());
  placeNodes(place, shown);
  drawTokens(place);
  drawGrid(place);
  if (focused !== undefined && shownAt[focused]) elements[focused].focus({ preventScroll: true });
  arranged = keyNow();
  return true;
}

const scrolled = () => offset;
const measured = () => (size ??= [$("scroll").clientWidth, $("scroll").clientHeight]);
const zoomed = () => measured().map((length) => Math.floor(length * state.zoom));
const groupsKey = () => state.groups.map((group) => group.members.join("+")).join(" ");

function resized() {
  size = null;
  refresh();
}

function redraw(moving = false) {
  const { left, top } = scrolled();
  $("tokens-inner").style.transform = `translateX(${-left}px)`;
  $("axis-inner").style.transform = `translateY(${-top}px)`;
  $("grid-inner").style.transform = `translate(${-left}px, ${-top}px)`;
  drawBase(place, moving);
  redrawFocus();
}

let resting = 0;

function scrollGraph(left, top) {
  $("scroll").scrollTo(left, top);
  moved();
}

function moved() {
  const { scrollLeft: left, scrollTop: top } = $("scroll");
  if (left === offset.left && top === offset.top) return;
  offset = { left, top };
  redraw(true);
  $("tooltip").hidden = true;
  clearTimeout(resting);
  resting = setTimeout(() => redraw(), 120);
}

const redrawFocus = () => drawFocus(place, inQuestion(), shownAt);

const inQuestion = () => (state.hovered >= 0 ? state.hovered : state.selected);

// The node under the pointer, or else the selected one, stands out with its neighbours.
function refocus() {
  if (state.hovered >= 0 && !shownAt[state.hovered]) state.hovered = -1;
  redrawFocus();
  litNeighbours(inQuestion(), focus.list);
  showTooltip(place, state.hovered);
}

function drawCounts() {
  const many = (x) => x.toLocaleString("en");
  const drawn = base.list.length < base.between ? ` (${many(base.list.length)} strongest drawn)` : "";
  const ofNodes = `${many(shown.length)} of ${many(graph.size)} nodes`;
  $("counts").textContent = `${ofNodes} · ${many(base.between)} of ${many(graph.given.count)} links${drawn}`;
  $("empty").hidden = graph.nodes.some((n) => n.kind === "feature");
  $("empty").textContent = "This graph has no feature nodes.";
}

function start() {
  openNotes();
  restore();
  for (const [kinds, id] of [[["error"], "show-errors"], [["bias", "own"], "show-biases"]]) {
    $(id).disabled = !graph.nodes.some((n) => kinds.includes(n.kind));
  }
  written = address();
  showThreshold();
  listenToTheme(() => {
    readColours();
    if (currentPlace()) redraw();
  });
  drawHeading();
  drawCompared();
  refresh();
  keepNotes();
  listenToPointer();
  listenToDrag();
  listenToZoom();
  listenToGraphKeys();
  listenToPageKeys();
  listenToToolbar();
  listenToLists();
  listenToGroups();
  listenToSaving();
  // The window's own changes are followed at once; what else may move the plot (a wrapped legend) after this turn,
  // since laying out inside an observer's call may resize what it observes.
  window.addEventListener("resize", resized);
  new ResizeObserver(() => setTimeout(resized)).observe($("plot"));
  // Scrollbars that appear take room. Those that go leave it empty: laying out anew could bring them back, and so on.
  new ResizeObserver(() => setTimeout(() => {
    const [width, height] = measured();
    if ($("scroll").clientWidth < width || $("scroll").clientHeight < height) resized();
  })).observe($("scroll"));
  window.addEventListener("hashchange", () => { restore(); showThreshold(); refresh(); });
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
}

function showThreshold() {
  $("threshold").value = state.threshold;
  $("threshold-value").textContent = percent(state.threshold);
}

start();
