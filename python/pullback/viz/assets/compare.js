// Two graphs in one: what is only in A, only in B, or in both, and by how much the links differ.

const differing = () => graph.compared !== null && state.view === "difference";

// A node that only the other graph has is not in view.
function inView(n) {
  return !n.side || state.view === "difference" || n.side === state.view;
}

// What the links are drawn by: weights, those of one of two graphs, or their difference B - A.
function weightsInView() {
  const { weight, other } = graph.given;
  if (!other || state.view === "a") return weight;
  return state.view === "b" ? other : weight.map((a, e) => other[e] - a);
}

// What a link's share is a share of: the larger of its two weights where two are compared.
function sizesInView() {
  const { weight, other } = graph.given;
  if (other && state.view === "difference") return weight.map((a, e) => Math.max(Math.abs(a), Math.abs(other[e])));
  return weightsInView().map(Math.abs);
}

function colourOf(e) {
  const { a, b, weight } = graph.links;
  if (differing()) {
    if (b[e] === 0) return "only-a";
    if (a[e] === 0) return "only-b";
    return "ink-soft";
  }
  return weight[e] < 0 ? "negative" : "positive";
}

// Whether a link suppresses: in the graph that has it, in B where both do.
function suppresses(e) {
  const { a, b, weight } = graph.links;
  return (differing() ? b[e] || a[e] : weight[e]) < 0;
}

function linkVerb(e) {
  if (!differing()) return graph.links.weight[e] < 0 ? "inhibits" : "excites";
  if (graph.links.b[e] === 0) return "only in A";
  if (graph.links.a[e] === 0) return "only in B";
  return graph.links.weight[e] < 0 ? "in both, lower in B" : "in both, higher in B";
}

const SIDE_NAMES = { a: "only in A", b: "only in B" };

function comparedFacts(n) {
  const { other } = n.raw;
  const rows = [["Token in B", h("bdi", { class: "quoted" }, clip(visible(other.token), 60))]];
  if (Number.isFinite(other.activation) && n.kind === "feature") rows.push(["Activation in B", plain(other.activation)]);
  if (n.kind === "logit") rows.push(["Probability in B", (other.token_prob ?? 0).toPrecision(3)]);
  return rows;
}

// A link's weight in A, in B, and their difference; a dash where a graph does not have it.
function threeNumbers(e) {
  const { a, b } = graph.links;
  return [a[e], b[e], b[e] - a[e]].map((x) => h("td", { class: "number" }, x === 0 ? "–" : signed(x)));
}

// The overview of a comparison: the links that differ most, and the leading features of one graph only.
function comparison() {
  const { source, target } = graph.links;
  const most = [...graph.links.order].filter((e) => e < graph.given.count).slice(0, 15);
  const only = (side) => graph.nodes.filter((n) => n.kind === "feature" && n.side === side)
    .sort((m, n) => (m.influence ?? 1) - (n.influence ?? 1)).slice(0, 8);
  const pair = (e) => h("tr", { "data-go": target[e], class: "pair" },
    h("td", {}, nodeButton(source[e]), nodeButton(target[e])), ...threeNumbers(e));
  const head = h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "link"), ...["A", "B", "B − A"].map((t) => h("th", { scope: "col", class: "number" }, t))));
  const list = (side) => {
    const nodes = only(side);
    return nodes.length ? h("section", { class: "links", "aria-label": SIDE_NAMES[side] },
      h("h3", { class: `only-${side}` }, `Features ${SIDE_NAMES[side]} `, h("small", {}, String(graph.compared.counts[side]))),
      h("table", {}, h("tbody", {}, ...nodes.map((n) => h("tr", { "data-go": n.i }, h("td", {}, nodeButton(n.i))))))) : null;
  };
  return [
    h("section", { class: "links", "aria-label": "Largest differences" }, h("h3", {}, "Largest differences"),
      h("table", {}, head, h("tbody", {}, ...most.map(pair)))),
    list("a"), list("b"),
  ];
}

// A sentence above the graph for each of the two, and the choice between them and their difference.
function drawCompared() {
  $("compare").hidden = !graph.compared;
  if (!graph.compared) return;
  document.body.classList.add("comparing");
  const { a, b, counts } = graph.compared;
  $("source").replaceChildren(
    h("b", { class: "only-a" }, "A "), h("bdi", {}, clip(visible(a.prompt), 120)), h("b", { class: "only-b" }, " B "),
    h("bdi", {}, clip(visible(b.prompt), 120)), ` · ${counts.both} nodes in both`);
  for (const input of $("compare").querySelectorAll("input")) {
    input.addEventListener("change", () => { state.view = input.value; regroup(); refresh(); });
  }
}
