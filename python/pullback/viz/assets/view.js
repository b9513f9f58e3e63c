// The window onto the graph: zoom, dragging, the rectangle that chooses nodes, light and dark.

const ZOOM = { least: 1, most: 6, step: 1.25 };

// Zooms so that the point under the pointer, or the middle of the window, stays where it is.
function zoomTo(zoom, at = null) {
  const next = Math.max(ZOOM.least, Math.min(ZOOM.most, zoom));
  if (next === state.zoom) return;
  const [px, py] = at ?? measured().map((length) => length / 2);
  const old = currentPlace();
  const [fx, fy] = [(scrolled().left + px) / old.width, (scrolled().top + py) / old.height];
  state.zoom = next;
  refresh();
  const place = currentPlace();
  scrollGraph(fx * place.width - px, fy * place.height - py);
  $("zoom-out").disabled = next === ZOOM.least;
  $("zoom-in").disabled = next === ZOOM.most;
}

function listenToZoom() {
  $("zoom-in").addEventListener("click", () => zoomTo(state.zoom * ZOOM.step));
  $("zoom-out").addEventListener("click", () => zoomTo(state.zoom / ZOOM.step));
  $("scroll").addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const box = $("scroll").getBoundingClientRect();
    zoomTo(state.zoom * ZOOM.step ** Math.sign(-event.deltaY), [event.clientX - box.left, event.clientY - box.top]);
  }, { passive: false });
}

const DRAG = 4; // pixels before a press is a drag
let dragged = false; // so that the click that ends a drag is none

// A press on the ground moves the graph; with Shift it draws a rectangle, and the nodes inside are chosen.
function listenToDrag() {
  const scroll = $("scroll");
  let from = null;
  scroll.addEventListener("pointerdown", (event) => {
    dragged = false;
    if (event.button !== 0 || event.pointerType === "touch" || event.target.closest(".node")) return;
    from = { x: event.clientX, y: event.clientY, ...scrolled(), box: event.shiftKey };
  });
  scroll.addEventListener("pointermove", (event) => {
    if (!from) return;
    const [dx, dy] = [event.clientX - from.x, event.clientY - from.y];
    if (!dragged && Math.hypot(dx, dy) < DRAG) return;
    if (!dragged) scroll.setPointerCapture(event.pointerId);
    dragged = true;
    if (from.box) drawRectangle(from, event);
    else scrollGraph(from.left - dx, from.top - dy);
  });
  const end = (event) => {
    if (from?.box && dragged) chooseInside(from, event);
    from = null;
    $("rectangle").hidden = true;
  };
  scroll.addEventListener("pointerup", end);
  scroll.addEventListener("pointercancel", () => { from = null; $("rectangle").hidden = true; });
}

// Left, top, right, bottom in the window of the graph.
function rectangleOf(from, to) {
  const box = $("scroll").getBoundingClientRect();
  const [xs, ys] = [[from.x, to.clientX], [from.y, to.clientY]];
  return [Math.min(...xs) - box.left, Math.min(...ys) - box.top, Math.max(...xs) - box.left, Math.max(...ys) - box.top];
}

function drawRectangle(from, to) {
  const [left, top, right, bottom] = rectangleOf(from, to);
  Object.assign($("rectangle").style, { left: `${left}px`, top: `${top}px`, width: `${right - left}px`, height: `${bottom - top}px` });
  $("rectangle").hidden = false;
}

function chooseInside(from, to) {
  const [left, top, right, bottom] = rectangleOf(from, to);
  const { x, y } = currentPlace();
  const inside = (n) => {
    const [px, py] = [x[n.i] - scrolled().left, y[n.i] - scrolled().top];
    return n.i < graph.size && px >= left && px <= right && py >= top && py <= bottom;
  };
  for (const n of shownNodes().filter(inside)) state.chosen.add(n.i);
  refresh();
}
