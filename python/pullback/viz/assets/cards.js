// The card of a feature: where it is active, how often, what it writes and what it reads. Embedded, or asked for.

const fetched = new Map();

const cardName = (n) => `${layerName(n)}_${n.feature}`;
const cardOf = (n) => graph.cards[n.id] ?? graph.cards[cardName(n)] ?? fetched.get(cardName(n));

function cardSection(n) {
  if (n.kind !== "feature") return null;
  const card = cardOf(n);
  const section = (content, more = {}) => h("section", { id: "card", "aria-label": "Feature card", ...more }, ...content);
  if (card) return section(cardParts(card));
  if (card === null || n.attention || !graph.served?.cards) return null;
  const waiting = section([h("p", { class: "none" }, "Loading the feature card…")], { "aria-busy": "true" });
  fetchCard(n.row, n.feature).then((found) => {
    fetched.set(cardName(n), found);
    if (waiting.isConnected) waiting.replaceWith(cardSection(n) ?? section([h("p", { class: "none" }, "There is no card of this feature.")]));
  }, () => waiting.replaceChildren(h("p", { class: "none" }, "The feature card could not be loaded.")));
  return waiting;
}

function cardParts(card) {
  const parts = [
    card.density !== undefined && card.density !== null || card.histogram ? spreadPart(card) : null,
    card.top_logits?.length || card.bottom_logits?.length ? logitPart(card) : null,
    card.deembedding?.length ? tokenBars("Reads from tokens", card.deembedding) : null,
    card.examples?.length || card.sampled?.some((group) => group.examples.length) ? examplePart(card) : null,
  ].filter(Boolean);
  return parts.length ? parts : [h("p", { class: "none" }, "The card of this feature is empty.")];
}
