// What the reader can do: pointer, keyboard, search, switches, token row.

function select(i, { move = false } = {}) {
  state.selected = i;
  if (i >= 0) state.current = i;
  refresh();
  $("panel").scrollTop = 0;
  if (i >= 0) {
    if (shownNow(i)) elements[i].focus({ preventScroll: true });
    if (move && shownNow(i)) bringIntoView(i);
    const [ins, outs] = [inputsOf(i).length, outputsOf(i).length];
    $("announce").textContent = `Selected ${spoken(graph.nodes[i])}: ${ins} inputs, ${outs} outputs`;
  }
}

function togglePin(i) {
  if (i < 0 || i >= graph.size) return;
  if (!state.pinned.delete(i)) state.pinned.add(i);
  refresh();
}

function hover(i) {
  if (i === state.hovered && (i >= 0 || state.edge < 0)) return;
  state.hovered = i;
  state.edge = -1;
  refocus();
}

// Where no node is near, the link under the pointer is shown.
function hoverLink(e, at) {
  if (e === state.edge) return;
  state.edge = e;
  redrawFocus();
  if (e >= 0) showLinkTooltip(e, ...at);
  else $("tooltip").hidden = true;
}

function bringIntoView(i) {
  const { x, y } = currentPlace();
  const { left, top } = scrolled();
  const [width, height] = measured();
  const near = (at, from, length) => (at < from + 24 || at > from + length - 24 ? at - length / 2 : from);
  scrollGraph(near(x[i], left, width), near(y[i], top, height));
}

function listenToPointer() {
  const scroll = $("scroll");
  const under = (event) => {
    const box = scroll.getBoundingClientRect();
    const at = [event.clientX - box.left, event.clientY - box.top];
    const [x, y] = [at[0] + scrolled().left, at[1] + scrolled().top];
    return { i: nodeAt(currentPlace(), shownNodes(), x, y), at, x, y };
  };
  scroll.addEventListener("pointermove", (event) => {
    if (dragged && event.buttons) return;
    const { i, at, x, y } = under(event);
    hover(i);
    const e = i < 0 ? linkAt(currentPlace(), x, y) : -1;
    if (i < 0) hoverLink(e, at);
    scroll.style.cursor = i >= 0 || e >= 0 ? "pointer" : "";
  });
  scroll.addEventListener("pointerleave", () => hover(-1));
  scroll.addEventListener("click", (event) => {
    if (dragged) { dragged = false; return; }
    const { i } = under(event);
    if (event.shiftKey) choose(i);
    else if (event.ctrlKey || event.metaKey) togglePin(i);
    else select(i);
  });
  scroll.addEventListener("scroll", moved, { passive: true });
}

// Left and right stay in the layer, up and down go to the next layer that has a node, the nearest one there.
function neighbour(i, key) {
  const { x, y } = currentPlace();
  const shown = shownNodes();
  const at = graph.nodes[i];
  const nearest = (list) => list.reduce((best, n) => (best && distance(best) <= distance(n) ? best : n), null);
  const distance = (n) => Math.abs(x[n.i] - x[i]) + Math.abs(y[n.i] - y[i]) * 0.6;
  if (key === "ArrowLeft" || key === "ArrowRight") {
    const along = shown.filter((n) => n.row === at.row).sort((a, b) => a.pos - b.pos || y[a.i] - y[b.i] || x[a.i] - x[b.i]);
    return along[along.indexOf(at) + (key === "ArrowRight" ? 1 : -1)] ?? null;
  }
  const up = key === "ArrowUp";
  const beyond = shown.filter((n) => (up ? n.row > at.row : n.row < at.row));
  const row = beyond.reduce((r, n) => (up ? Math.min(r, n.row) : Math.max(r, n.row)), up ? Infinity : -Infinity);
  return nearest(beyond.filter((n) => n.row === row));
}

function stand(i) {
  state.current = i;
  elements[i].focus({ preventScroll: true });
  bringIntoView(i);
}

function listenToGraphKeys() {
  world.addEventListener("focusin", (event) => {
    const node = event.target.closest(".node");
    if (!node) return;
    state.current = Number(node.dataset.i);
    makeDoor(state.current);
    if (node.matches(":focus-visible")) hover(state.current);
  });
  world.addEventListener("focusout", () => hover(-1));
  world.addEventListener("keydown", (event) => {
    const i = state.current;
    if (i < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key.startsWith("Arrow")) {
      const next = neighbour(i, event.key);
      if (next) { stand(next.i); hover(next.i); }
    } else if (event.key === "Enter" || event.key === " ") select(i);
    else return;
    event.preventDefault();
  });
}

function listenToPageKeys() {
  document.addEventListener("keydown", (event) => {
    if ($("help").open) return;
    if (event.key === "Escape") { clearOne(); return; }
    const here = world.contains(document.activeElement) ? state.current : state.selected;
    const typing = event.target.matches?.("input[type=search], input[type=text], select");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    if (key === "/") $("search").focus();
    else if (key === "?") $("help").showModal();
    else if (key === "p") togglePin(here);
    else if (key === "s") chooseHere(here);
    else if (key === "g") $("group-name")?.focus();
    else if (key === "c") $("collapse").click();
    else if (key === "+" || key === "=") zoomTo(state.zoom * ZOOM.step);
    else if (key === "-") zoomTo(state.zoom / ZOOM.step);
    else if (key === "e") $("show-errors").click();
    else if (key === "b") $("show-biases").click();
    else return;
    event.preventDefault();
  });
}

function chooseHere(i) {
  choose(i);
  if (i >= 0 && shownNow(i)) elements[i].focus({ preventScroll: true });
}

// Escape undoes the latest kind of choice first: search, then selection, then chosen nodes, then positions.
function clearOne() {
  if ($("search").value) { $("search").value = ""; search(); }
  else if (state.selected >= 0) select(-1);
  else if (state.chosen.size) { state.chosen.clear(); refresh(); }
  else if (state.positions.size) { state.positions.clear(); refresh(); }
  document.activeElement?.matches?.("#search") && $("search").blur();
  hover(-1);
}

function search() {
  state.hits = find($("search").value);
  state.hitSet = new Set(state.hits);
  const away = state.hits.filter((i) => !shownNow(i)).length;
  const count = `${state.hits.length} found${away ? `, ${away} hidden` : ""}`;
  $("search-count").textContent = $("search").value.trim() ? count : "";
  markNodes(shownNodes());
}

function stepThroughHits(back) {
  if (!state.hits.length) return;
  const at = state.hits.indexOf(state.selected);
  const next = at < 0 ? (back ? state.hits.length - 1 : 0) : (at + (back ? -1 : 1) + state.hits.length) % state.hits.length;
  select(state.hits[next], { move: true });
  $("search").focus();
}

function listenToToolbar() {
  $("search").addEventListener("input", search);
  $("search").addEventListener("keydown", (event) => { if (event.key === "Enter") stepThroughHits(event.shiftKey); });
  let waiting = 0;
  $("threshold").addEventListener("input", () => {
    state.threshold = Number($("threshold").value);
    $("threshold-value").textContent = percent(state.threshold);
    clearTimeout(waiting);
    waiting = setTimeout(refresh);
  });
  $("show-errors").addEventListener("change", () => { state.errors = $("show-errors").checked; refresh(); });
  $("show-biases").addEventListener("change", () => { state.biases = $("show-biases").checked; refresh(); });
  $("help-button").addEventListener("click", () => $("help").showModal());
  $("toggle-panel").addEventListener("click", () => {
    const closed = $("main").classList.toggle("no-panel");
    $("toggle-panel").setAttribute("aria-expanded", String(!closed));
    resized();
  });
}

function listenToLists() {
  $("panel").addEventListener("click", (event) => {
    const unpin = event.target.closest("[data-unpin]");
    const go = event.target.closest("[data-go]");
    if (unpin) togglePin(Number(unpin.dataset.unpin));
    else if (event.target.id === "unpin-all") { state.pinned.clear(); refresh(); }
    else if (event.target.id === "pin") { togglePin(state.selected); $("pin").focus(); }
    else if (event.target.id === "deselect") select(-1);
    else if (go) select(Number(go.dataset.go), { move: true });
  });
  // A row under the pointer shows its node on the graph.
  $("panel").addEventListener("pointerover", (event) => {
    const go = event.target.closest("[data-go]");
    for (const old of world.querySelectorAll(".named")) old.classList.remove("named");
    if (go) elements[Number(go.dataset.go)]?.classList.add("named");
  });
  $("tokens").addEventListener("click", (event) => {
    const token = event.target.closest("[data-pos]");
    if (!token) return;
    const pos = Number(token.dataset.pos);
    const had = state.positions.has(pos);
    if (!(event.ctrlKey || event.metaKey)) state.positions.clear();
    if (had) state.positions.delete(pos);
    else state.positions.add(pos);
    refresh();
    $("tokens").querySelector(`[data-pos="${pos}"]`).focus();
  });
}
