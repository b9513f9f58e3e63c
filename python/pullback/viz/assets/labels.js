// Text that stands on the graph: names of pinned and selected nodes, rings and names of supernodes,
// the token row, the layer axis, the tooltip.

const symbol = (kind) => {
  const icon = svg("svg", { class: `symbol ${kind}`, viewBox: "-1.5 -1.5 3 3", "aria-hidden": "true" });
  if (kind === "logit") svg("rect", { x: -1.3, y: -0.75, width: 2.6, height: 1.5, rx: 0.75, class: "node logit" }, icon);
  else svg("path", { d: SHAPES[kind], class: `node ${kind}` }, icon);
  return icon;
};

function drawLabels(place, shownAt) {
  const taken = [];
  $("labels").replaceChildren();
  $("rings").replaceChildren();
  const named = new Set(state.pinned);
  if (state.selected >= 0) named.add(state.selected);
  for (const i of named) {
    const n = graph.nodes[i];
    if (shownAt[i] && n.kind !== "logit" && n.kind !== "group") writeLabel(place, i, clip(n.label, 26), "", taken);
  }
  state.groups.forEach(({ name, members }, k) => {
    const label = clip(visible(name), 22);
    if (state.collapsed) return writeLabel(place, graph.size + k, label, `group tint-${k % 5}`, taken);
    const there = members.filter((i) => shownAt[i]);
    for (const i of there) ring(place, i, k);
    for (const i of oneOfEachCell(there)) writeLabel(place, i, label, `group tint-${k % 5}`, taken);
  });
}

function ring(place, i, k) {
  const pill = place.pills.find((p) => p.i === i);
  const w = (pill ? pill.width / 2 : place.radius) + 4;
  const t = (pill ? pill.height / 2 : place.radius) + 4;
  const box = { x: place.x[i] - w, y: place.y[i] - t, width: 2 * w, height: 2 * t, rx: t };
  svg("rect", { class: `ring tint-${k % 5}`, ...box }, $("rings"));
}

function oneOfEachCell(members) {
  const cells = new Map();
  for (const i of members) cells.set(`${graph.nodes[i].row},${graph.nodes[i].pos}`, i);
  return cells.values();
}

// Above, right, left, below: the place that covers the fewest other labels, then the fewest nodes.
function writeLabel(place, i, text, kind, taken) {
  const width = measure(text, `600 12px ${FONT}`) + 8;
  const away = place.radius + 6;
  const [cx, cy] = [place.x[i], place.y[i]];
  const options = [[cx - width / 2, cy - away - 9], [cx + away, cy], [cx - away - width, cy], [cx - width / 2, cy + away + 9]]
    .map(([x, y]) => ({ x: Math.max(2, Math.min(x, place.width - width - 2)), y: y - 9, width, height: 18 }));
  const meets = (b, o) => b.x < o.x + o.width && o.x < b.x + b.width && b.y < o.y + o.height && o.y < b.y + b.height;
  const symbolBox = (n) => ({ x: place.x[n.i] - 5, y: place.y[n.i] - 5, width: 10, height: 10 });
  const hides = (b) => shownNodes().filter((n) => meets(b, symbolBox(n))).length;
  const cost = (b) => 100 * taken.filter((o) => meets(b, o)).length + (b.y < 0 || b.y + 18 > place.height ? 1000 : 0) + hides(b);
  const costs = options.map(cost);
  const box = options[costs.indexOf(Math.min(...costs))];
  taken.push(box);
  const group = svg("g", { class: `label ${kind}`.trim() }, $("labels"));
  svg("rect", { x: box.x, y: box.y, width, height: 18, rx: 4 }, group);
  svg("text", { x: box.x + 4, y: box.y + 13 }, group).textContent = `\u2068${text}\u2069`;
}

function drawTokens(place) {
  const inner = $("tokens-inner");
  inner.style.width = `${place.width}px`;
  inner.replaceChildren(...place.columns.map((c, p) => h("button", {
    type: "button", class: `token${c.upright ? " upright" : ""}`, style: `left:${c.x}px;width:${c.width}px`,
    "data-pos": p, "aria-pressed": String(state.positions.has(p)),
    "aria-label": `Position ${p}, token ${visible(graph.tokens[p])}`,
    title: `${p}: ${clip(visible(graph.tokens[p]), 200)}`,
  }, h("bdi", {}, clip(visible(graph.tokens[p]), 40)))));
}

function drawGrid(place) {
  const byHeight = place.rows.slice().sort((a, b) => a.y - b.y);
  const every = Math.max(1, Math.ceil(15 / Math.min(...place.rows.map((r) => r.height))));
  const kept = (r) => !Number.isFinite(r.row) || r.row < 0 || Math.ceil(r.row) % every === 0;
  const name = (r) => h("span", { style: `top:${r.y + r.height / 2}px` }, rowName(r.row));
  const band = (r) => h("i", { class: "band", style: `top:${r.y}px;height:${r.height}px` });
  const column = (c, p) => h("b", { class: state.positions.has(p) && "on", style: `left:${c.x}px;width:${c.width}px` });
  $("axis-inner").replaceChildren(...byHeight.filter(kept).map(name));
  $("grid").replaceChildren(h("div", { id: "grid-inner", style: `width:${place.width}px;height:${place.height}px` },
    ...byHeight.map(band), ...place.columns.map(column)));
}

function facts(n) {
  if (n.kind === "group") return h("dl", { class: "facts" }, h("dt", {}, "Nodes"), h("dd", {}, String(n.members.length)));
  const rows = [["Layer", n.row === ROW_EMBED ? "embedding" : n.row === ROW_LOGIT ? "output" : Number.isInteger(n.row) ? String(n.row) : `${Math.ceil(n.row)}, attention`]];
  rows.push(["Position", h("span", {}, `${n.pos} `, h("bdi", { class: "quoted" }, clip(visible(graph.tokens[n.pos]), 60)))]);
  if (n.feature !== null) rows.push(["Feature", String(n.feature)]);
  if (n.kind === "logit") rows.push(["Probability", n.probability.toPrecision(3)]);
  else if (Number.isFinite(n.raw.activation) && (n.kind === "feature" || n.kind === "error")) {
    rows.push([n.kind === "error" ? "Norm" : "Activation", plain(n.raw.activation)]);
  }
  if (Number.isFinite(n.raw.preactivation)) {
    rows.push([n.kind === "logit" && !graph.metadata.value_name ? "Logit − mean" : VALUE, plain(n.raw.preactivation)]);
  }
  if (n.raw.other) rows.push(...comparedFacts(n));
  if (n.influence !== null) rows.push(["Influence", `within first ${percent(n.influence)}`]);
  return h("dl", { class: "facts" }, ...rows.flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]));
}

function showTooltip(place, i) {
  const tip = $("tooltip");
  tip.hidden = i < 0 || !stands(i);
  if (tip.hidden) return;
  const n = graph.nodes[i];
  const e = state.selected >= 0 && state.selected !== i ? linkBetween(i, state.selected) : -1;
  tip.replaceChildren(
    h("p", { class: "kind" }, symbol(n.kind), kindName(n)),
    h("p", { class: "name" }, h("bdi", {}, clip(n.label, 80))),
    facts(n),
    e < 0 ? "" : linkLine(e, i),
  );
  putTooltip(place.x[i] - scrolled().left, place.y[i] - scrolled().top);
}

function putTooltip(x, y) {
  const tip = $("tooltip");
  const [width, height] = measured();
  const right = x + 16 + tip.offsetWidth <= width;
  tip.style.left = `${Math.max(4, right ? x + 16 : x - 16 - tip.offsetWidth)}px`;
  tip.style.top = `${Math.max(4, Math.min(y - 20, height - tip.offsetHeight - 4))}px`;
}

function showLinkTooltip(e, x, y) {
  const { source, target, weight, share } = graph.links;
  const end = (word, i) => [h("dt", {}, word), h("dd", {}, h("bdi", {}, clip(graph.nodes[i].label, 60)), ` · ${whereOf(graph.nodes[i])}`)];
  const row = (name, value) => [h("dt", {}, name), h("dd", {}, value)];
  const numbers = graph.compared
    ? [["Weight in A", signed(graph.links.a[e])], ["Weight in B", signed(graph.links.b[e])], ["Difference", signed(graph.links.b[e] - graph.links.a[e])]]
    : [["Weight", signed(weight[e])], ["Share of input", percent(share[e])]];
  $("tooltip").replaceChildren(
    h("p", { class: `via ${weight[e] < 0 ? "negative" : "positive"}` }, linkVerb(e)),
    h("dl", { class: "facts" }, ...end("from", source[e]), ...end("to", target[e]), ...numbers.flatMap(([k, v]) => row(k, v))));
  $("tooltip").hidden = false;
  putTooltip(x, y);
}

const whereOf = (n) => {
  const bare = n.kind === "embedding" || n.kind === "logit" || n.kind === "position";
  return bare ? `pos ${n.pos}` : n.kind === "group" ? `${n.members.length} nodes` : `${rowName(n.row)} · ${visible(graph.tokens[n.pos])}`;
};

function linkLine(e, i) {
  const { source, weight, share } = graph.links;
  return h("p", { class: weight[e] < 0 ? "negative via" : "positive via" },
    `${source[e] === i ? "to" : "from"} the selected node ${signed(weight[e])} (${percent(share[e])})`);
}

function linkBetween(i, j) {
  const { source, target } = graph.links;
  return graph.inputs.of(j).find((e) => source[e] === i) ?? graph.outputs.of(j).find((e) => target[e] === i) ?? -1;
}
