// Parts of a dashboard beside the card: what features are wired to, what is active beside them, own prompts.

function table(title, note, heads, rows) {
  return part(title, note ? h("p", { class: "none" }, note) : null, h("table", { class: "wired" },
    h("thead", {}, h("tr", {}, ...heads.map((text, k) => h("th", { class: k && "number", scope: "col" }, text)))),
    h("tbody", {}, ...rows)));
}

function barCell(value, most, text = signed(value)) {
  return h("td", { class: "number bar", style: `--length:${((100 * Math.abs(value)) / (most || 1)).toFixed(1)}%` }, h("span", {}, text));
}

const largest = (items, key) => Math.max(...items.map((item) => Math.abs(item[key])), 0);

// A feature that is on this dashboard too can be gone to.
function nameOf(layer, feature) {
  const text = `L${layer}·${feature}`;
  const at = data.features.findIndex((one) => one.layer === layer && one.feature === feature);
  return at < 0 ? text : h("a", { href: `#${at}` }, text);
}

function wiredPart(title, items) {
  const most = largest(items, "weight");
  return table(title, null, ["Feature", "Weight"], items.map((item) => h("tr", { class: item.weight < 0 ? "negative" : "positive" },
    h("td", {}, nameOf(item.layer, item.feature)), barCell(item.weight, most))));
}

function neighbourPart({ layer, neighbours, beside }) {
  const note = Number.isFinite(beside) ? `${plain(beside)} other features are active on its average token.` : null;
  return table("Active together with", note, ["Feature", "Correlation", "On its tokens", "On all"], neighbours.map((item) => h("tr", {},
    h("td", {}, nameOf(layer, item.feature)), barCell(item.phi, 1, item.phi.toFixed(2)),
    h("td", { class: "number" }, percent(item.share)), h("td", { class: "number" }, percent(item.density)))));
}

// Heads as a map: a row a layer, the darker the larger.
function headPart(heads) {
  const most = largest(heads, "norm");
  const rows = [...new Set(heads.map((item) => item.layer))].reverse().map((layer) => h("tr", {},
    h("th", { scope: "row" }, `L${layer}`), ...heads.filter((item) => item.layer === layer).map((item) => h("td", {
      class: "cell", style: `--heat:${((100 * item.norm) / (most || 1)).toFixed(0)}%`, title: `L${item.layer}H${item.head}: ${plain(item.norm)}`,
    }, plain(item.norm)))));
  const wide = Math.max(...heads.map((item) => item.head)) + 1;
  return part("Reads through heads", h("p", { class: "none" }, "Norm of the feature's encoder pulled back through each head's OV."),
    h("div", { class: "scrolls" }, h("table", { class: "map" }, h("thead", {}, h("tr", {}, h("th"), ...Array.from({ length: wide }, (_, k) => h("th", { scope: "col" }, `H${k}`)))),
      h("tbody", {}, ...rows))));
}

function promptPart(prompts) {
  const most = Math.max(...prompts.flatMap((prompt) => prompt.activations), 0) || 1;
  const moved = ({ activations, substituted }) => substituted.some((value, k) => Math.abs(value - activations[k]) > 1e-6);
  const largestOf = (values) => plain(Math.max(...values, 0));
  return part("On prompts of one's own", h("ol", { class: "examples" }, ...prompts.map((prompt) => h("li", {},
    exampleOf({ ...prompt, whole: true }, most),
    moved(prompt) ? h("small", {}, `${largestOf(prompt.substituted)} with the lower layers' reconstructions in place`) : null))));
}

function readsPart({ deembedding, bottom_deembedding: bottom = [] }) {
  return h("div", { class: "part two" }, tokenColumn("Reads from tokens", deembedding, "positive"), tokenColumn("Reads against", bottom, "negative"));
}

function studyPart({ revealed, steps }) {
  const names = { prompt: "Prompt", graph: "Graph", note: "Note", reveal: "Examples revealed" };
  return part("Blind study", h("p", { class: "none" }, revealed ? "The examples were looked at after the steps above the line that says so." : "The examples have not been looked at."),
    h("ol", { class: "steps" }, ...steps.map(({ step, what }) => h("li", { class: step }, h("b", {}, names[step] ?? step), " ", h("bdi", {}, marks(what))))));
}
