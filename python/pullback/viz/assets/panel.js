// The side panel: pinned and chosen nodes, supernodes, then either the selected node with its inputs and outputs, or
// an overview.

const FIRST_ROWS = 40;

function drawPanel() {
  const n = graph.nodes[state.selected];
  const typed = $("group-name")?.value ?? "";
  $("panel").replaceChildren(...[chosenList(typed), groupList(), pinnedList(), ...(n ? nodePanel(n) : overview())].filter(Boolean));
}

function pinnedList() {
  if (!state.pinned.size) return null;
  const quiet = { type: "button", class: "quiet" };
  const unpin = (i) => h("button", { ...quiet, "data-unpin": i, "aria-label": `Unpin ${graph.nodes[i].label}`, title: "Unpin" }, "×");
  const items = Array.from(state.pinned, (i) => h("li", {}, nodeButton(i), unpin(i)));
  return h("section", { id: "pinned", "aria-label": "Pinned nodes" },
    h("h2", {}, "Pinned ", h("small", {}, String(items.length)), h("button", { ...quiet, id: "unpin-all" }, "clear")),
    h("ul", {}, ...items));
}

// A node as it appears in every list: symbol, name, and where it is.
function nodeButton(i) {
  const n = graph.nodes[i];
  return h("button", { type: "button", class: `go ${lookOf(n)}`, "data-go": i, "aria-label": spoken(n) }, symbol(n.kind),
    h("bdi", { class: "name" }, clip(n.label, 60)), h("bdi", { class: "where" }, clip(whereOf(n), 24)));
}

function nodePanel(n) {
  const pinned = state.pinned.has(n.i);
  const button = (id, text, more = {}) => h("button", { type: "button", id, ...more }, text);
  const named = n.kind === "feature" || n.kind === "group";
  return [
    h("section", { id: "selected-node" },
      h("p", { class: `kind ${lookOf(n)}` }, symbol(n.kind), n.side ? `${kindName(n)}, ${SIDE_NAMES[n.side]}` : kindName(n)),
      h("h2", {}, h("bdi", {}, clip(n.label, 200))),
      n.kind === "feature" && n.name ? h("p", { class: "id" }, `${rowName(n.row)}·${n.feature}`) : null,
      facts(n),
      n.kind === "group" ? memberList(n) : null,
      h("p", { class: "actions" },
        n.kind === "group" ? button("dissolve", "Dissolve") : button("pin", pinned ? "Unpin" : "Pin", { "aria-pressed": String(pinned) }),
        named ? button("rename", n.kind === "group" ? "Rename" : "Label") : null,
        n.kind === "group" ? null : button("choose", state.chosen.has(n.i) ? "Unchoose" : "Choose", { "aria-pressed": String(state.chosen.has(n.i)), title: "Choose nodes to make a supernode (Shift-click, S)" }),
        button("deselect", "Deselect"))),
    cardSection(n),
    linkTable("Inputs", inputsOf(n.i), graph.links.source, n),
    linkTable("Outputs", outputsOf(n.i), graph.links.target, n),
  ];
}

// Strongest first. The percentage is always the share of the target's input: of this node for its inputs,
// of the other node for its outputs.
function linkTable(title, list, otherEnd, n) {
  const { weight, share } = graph.links;
  const strength = title === "Inputs" || graph.compared ? (e) => Math.abs(weight[e]) : (e) => share[e];
  const order = Array.from(list).sort((a, b) => strength(b) - strength(a) || a - b);
  const largest = order.length ? share[order[0]] : 1;
  const body = h("tbody", {});
  const numbers = graph.compared
    ? threeNumbers
    : (e) => [h("td", { class: "number" }, signed(weight[e])), bar(share[e], share[e] / (largest || 1))];
  const sign = (e) => (graph.compared ? null : weight[e] < 0 ? "negative" : "positive");
  const row = (e) => h("tr", {
    class: sign(e), "data-go": otherEnd[e], "data-hidden": !shownNow(otherEnd[e]) && "yes",
  }, h("td", {}, nodeButton(otherEnd[e])), ...numbers(e));
  let drawn = 0;
  const more = h("button", { type: "button", class: "more" });
  const extend = (count) => {
    body.append(...order.slice(drawn, drawn + count).map(row));
    drawn = Math.min(order.length, drawn + count);
    more.hidden = drawn >= order.length;
    more.textContent = `Show ${Math.min(200, order.length - drawn)} more of ${order.length - drawn}`;
  };
  more.addEventListener("click", () => extend(200));
  extend(FIRST_ROWS);
  return h("section", { class: "links", "aria-label": title },
    h("h3", {}, `${title} `, h("small", {}, order.length.toLocaleString("en"))),
    order.length
      ? h("table", {}, linkHead(title), body, title === "Inputs" ? balance(order, n) : null)
      : h("p", { class: "none" }, "none in this graph"),
    more);
}

function bar(value, length) {
  return h("td", { class: "number bar", style: `--length:${(100 * length).toFixed(1)}%` }, h("span", {}, percent(value)));
}

function linkHead(title) {
  const number = { scope: "col", class: "number" };
  const end = h("th", { scope: "col" }, title === "Inputs" ? "from" : "to");
  if (graph.compared) return h("thead", {}, h("tr", {}, end, ...["A", "B", "B − A"].map((name) => h("th", number, name))));
  return h("thead", {}, h("tr", {}, end, h("th", number, "weight"),
    h("th", { ...number, title: "Share of the target's total absolute input" }, "share")));
}

// All inputs together, beside the pre-activation they should add up to.
function balance(order, n) {
  const total = sum(order.map((e) => graph.links.weight[e]));
  if (graph.compared) return null;
  const goal = n.raw.preactivation;
  const text = Number.isFinite(goal) ? `sum of inputs (${VALUE.toLowerCase()} ${plain(goal)})` : "sum of inputs";
  return h("tfoot", {}, h("tr", {}, h("td", {}, text), h("td", { class: "number" }, signed(total)), h("td", {})));
}

function overview() {
  const logits = graph.nodes.filter((n) => n.kind === "logit").sort((a, b) => b.probability - a.probability);
  const ranked = graph.nodes.filter((n) => n.kind === "feature" && n.influence !== null);
  const top = ranked.sort((a, b) => a.influence - b.influence).slice(0, 12);
  const list = (title, nodes, more) => (nodes.length === 0 ? null : h("section", { class: "links", "aria-label": title },
    h("h3", {}, title),
    h("table", {}, h("tbody", {}, ...nodes.map((n) => h("tr", { "data-go": n.i }, h("td", {}, nodeButton(n.i)), more(n)))))));
  const hint = h("p", {}, "Hover a node to see what feeds it and what it feeds. Click to select it, press ", h("kbd", {}, "?"), " for keys.");
  return [
    h("section", { id: "hint" }, hint),
    ...(graph.compared ? comparison() : []),
    list("Outputs", logits, (n) => bar(n.probability, n.probability)),
    attentionList(),
    list("Most influential features", top, () => null),
  ].filter(Boolean);
}

// What stands around the graph and does not change: heading, scores, legend.
function drawHeading() {
  const { metadata, title, tokens } = graph;
  const prompt = metadata.prompt.trim() || tokens.map(visible).join(" ");
  $("prompt").textContent = clip(visible(title ?? prompt), 300);
  $("prompt").title = clip(visible(prompt), 1000);
  const about = [visible(metadata.scan), title ? clip(visible(prompt), 120) : ""];
  $("source").textContent = about.filter(Boolean).join(" · ");
  const scores = metadata.scores ?? {};
  const entries = [
    ["Replacement", scores.replacement, percent,
      "Share of the output's influence that comes through features rather than errors"],
    ["Completeness", scores.completeness, percent,
      "Share of all nodes' input, weighted by influence, that is not from errors"],
    ["Check", metadata.check_max_error, (x) => x.toExponential(1),
      "Largest relative gap between a node's pre-activation and the sum of its inputs"],
  ];
  $("scores").replaceChildren(...entries.filter(([, value]) => Number.isFinite(value)).map(([name, value, format, why]) =>
    h("div", { title: why }, h("dt", {}, name), h("dd", {}, format(value)))));
}

let legend = "";

function drawLegend() {
  const kinds = ["feature", "head", "skip", "group", "embedding", "position", "error", "bias", "own", "logit"];
  const names = { embedding: "token", own: "own bias", group: "supernode", head: "attention head", skip: "skip connection" };
  const present = new Set(shownNodes().map((n) => n.kind));
  const key = `${[...present]} ${state.view}`;
  if (key === legend) return;
  legend = key;
  const line = (sign, text) => h("li", { class: "sign" }, h("i", { class: `line ${sign}`, "aria-hidden": "true" }), text);
  const differs = differing();
  const signs = differs
    ? [line("only-a", "only in A"), line("only-b", "only in B"), line("both", "in both"), line("both dashed", "inhibits")]
    : [line("positive", "excites"), line("negative", "inhibits")];
  $("legend").replaceChildren(
    ...kinds.filter((kind) => present.has(kind)).map((kind) => h("li", {}, symbol(kind), names[kind] ?? kind)), ...signs,
    h("li", { class: "sign wide" }, differs ? "width: difference" : "width: share of the target's input"));
}
