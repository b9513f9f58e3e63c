// Parts of a card: how active a feature is and where, what it writes and what it reads.

const FIRST_EXAMPLES = 6;

const part = (title, ...content) => h("div", { class: "part" }, h("h3", {}, title), ...content);

function spreadPart({ density, histogram, quantiles }) {
  const rows = [];
  if (Number.isFinite(density)) rows.push(["Density", `${plain(100 * density)}% of tokens`]);
  if (quantiles?.length) rows.push(["Quantiles", quantiles.map((q) => (Array.isArray(q) ? `${percent(q[0])}: ${plain(q[1])}` : plain(q))).join("  ")]);
  return part("Activations", rows.length ? h("dl", { class: "facts" }, ...rows.flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, v)])) : null,
    histogram?.counts?.length ? histogramOf(histogram) : null);
}

// Bars by the square root of the counts: the tail is what one looks for.
function histogramOf({ counts, edges }) {
  const most = Math.max(...counts, 1);
  const bars = svg("svg", { class: "histogram", viewBox: `0 0 ${counts.length} 1`, preserveAspectRatio: "none", role: "img", "aria-label": `Histogram of ${counts.length} bins` });
  counts.forEach((count, k) => {
    const height = Math.sqrt(count / most);
    const rect = svg("rect", { x: k + 0.08, y: 1 - height, width: 0.84, height }, bars);
    svg("title", {}, rect).textContent = edges ? `${plain(edges[k])} to ${plain(edges[k + 1])}: ${count.toLocaleString("en")}` : count.toLocaleString("en");
  });
  const ends = edges ? h("div", { class: "ends", "aria-hidden": "true" }, h("span", {}, plain(edges[0])), h("span", {}, plain(edges.at(-1)))) : null;
  return h("div", {}, bars, ends);
}

// Tokens come bare, or with a number.
const wordAndNumber = (item) => (Array.isArray(item) ? item : [item, null]);

function tokenColumn(title, items, sign) {
  return h("div", { class: sign }, h("h4", {}, title), h("ul", {}, ...(items ?? []).slice(0, 10).map((item) => {
    const [token, value] = wordAndNumber(item);
    return h("li", {}, h("bdi", { class: "quoted" }, clip(visible(token), 24)), value === null ? null : h("span", {}, signed(value)));
  })));
}

function logitPart({ top_logits: top, bottom_logits: bottom }) {
  return h("div", { class: "part two" }, tokenColumn("Raises", top, "positive"), tokenColumn("Lowers", bottom, "negative"));
}

function tokenBars(title, items) {
  const pairs = items.slice(0, 10).map(wordAndNumber);
  const most = Math.max(...pairs.map(([, value]) => Math.abs(value ?? 0))) || 1;
  const row = ([token, value]) => h("tr", { class: value < 0 ? "negative" : "positive" },
    h("td", {}, h("bdi", { class: "quoted" }, clip(visible(token), 30))),
    h("td", { class: "number bar", style: `--length:${((100 * Math.abs(value ?? 0)) / most).toFixed(1)}%` }, h("span", {}, value === null ? "" : signed(value))));
  return part(title, h("table", {}, h("tbody", {}, ...pairs.map(row))));
}

function examplePart({ examples = [], sampled = [] }) {
  const groups = sampled.filter((group) => group.examples.length);
  const every = [examples, ...groups.map((group) => group.examples)].flat();
  const most = Math.max(...every.flatMap((x) => x.activations ?? []), 0) || 1;
  return part("Most active on", examples.length ? exampleList(examples, most) : null, ...groups.map((group) => groupPart(group, most)));
}

function exampleList(examples, most) {
  const list = h("ol", { class: "examples" });
  const more = h("button", { type: "button", class: "more" });
  let drawn = 0;
  const extend = (count) => {
    list.append(...examples.slice(drawn, drawn + count).map((x) => h("li", {}, exampleOf(x, most))));
    drawn = Math.min(examples.length, drawn + count);
    more.hidden = drawn >= examples.length;
    more.textContent = `Show ${examples.length - drawn} more`;
  };
  more.addEventListener("click", () => extend(examples.length));
  extend(FIRST_EXAMPLES);
  return h("div", {}, list, more);
}

// Further examples in groups; closed, since the strongest come first.
function groupPart({ name, examples }, most) {
  const group = h("details", { class: "further" }, h("summary", {}, name, " ", h("small", {}, `${examples.length}`)));
  group.addEventListener("toggle", () => { if (group.open && group.children.length === 1) group.append(exampleList(examples, most)); });
  return group;
}

// The text around the strongest token; opened, all of it.
function exampleOf({ tokens, activations = [], train_token_ind: at, whole: all = false }, most) {
  const peak = at ?? activations.indexOf(Math.max(...activations));
  const word = (k) => h("span", {
    style: activations[k] > 0 && `--heat:${(100 * activations[k] / most).toFixed(0)}%`, class: k === peak && activations[k] > 0 && "peak",
    title: activations[k] > 0 && `${visible(tokens[k])}: ${plain(activations[k])}`,
  }, marks(tokens[k]));
  const words = (from, to) => Array.from({ length: to - from }, (_, k) => word(from + k));
  const [from, to] = all ? [0, tokens.length] : [Math.max(0, peak - 12), Math.min(tokens.length, peak + 7)];
  // Vocabularies of whole words have no white space of their own.
  const spaced = tokens.length > 2 && !tokens.some((token) => /\s/.test(token)) && "spaced";
  const value = h("b", {}, activations[peak] === undefined ? "" : plain(activations[peak]));
  const short = [value, from > 0 ? "…" : "", ...words(from, to), to < tokens.length ? "…" : ""];
  if (from === 0 && to === tokens.length) return h("p", { class: spaced }, ...short);
  const whole = h("details", { class: spaced }, h("summary", {}, ...short));
  whole.addEventListener("toggle", () => { if (whole.open && whole.children.length === 1) whole.append(h("p", {}, ...words(0, tokens.length))); });
  return whole;
}
