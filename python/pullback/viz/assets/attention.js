// Of a circuit: the entries of patterns that carry it, each with the pairs of parts that its score is made of.

function attentionList() {
  const entries = graph.metadata.attention ?? [];
  if (!entries.length) return null;
  const at = (pos) => `${clip(visible(graph.tokens[pos]), 20)} (${pos})`;
  const part = (name) => (graph.byId.has(name) ? nodeButton(graph.byId.get(name)) : h("bdi", { class: "name" }, name));
  const number = (value) => h("td", { class: "number" }, signed(value));
  const entry = (one) => {
    const rival = one.against === null || one.against === undefined ? "" : ` above that of ${at(one.against)}`;
    const pairs = one.pairs.map((pair) => h("tr", { class: pair.value < 0 ? "negative" : "positive" },
      h("td", {}, part(pair.query)), h("td", {}, part(pair.key)), number(pair.value)));
    const head = h("tr", {}, ...["query", "key"].map((end) => h("th", { scope: "col" }, end)),
      h("th", { scope: "col", class: "number", title: `Largest parts of the score ${plain(one.score)}${rival}` }, "score"));
    return h("details", {},
      h("summary", {}, `L${one.layer} head ${one.head}: ${at(one.query_pos)} looks at ${at(one.key_pos)} `,
        h("small", {}, `${percent(one.pattern)}, carries ${signed(one.carried)}`)),
      h("table", {}, h("thead", {}, head), h("tbody", {}, ...pairs)));
  };
  return h("section", { id: "attention", class: "links further", "aria-label": "Attention" },
    h("h3", {}, "Attention that carries it ", h("small", {}, String(entries.length))), ...entries.map(entry));
}
