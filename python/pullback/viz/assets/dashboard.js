// A dashboard: the list of features, and the parts of the one that is looked at. Its number is the page's fragment.

const data = JSON.parse($("data").textContent);
let at = 0;

const some = (items) => items?.length > 0;

function partsOf(one) {
  return [
    some(one.prompts) ? promptPart(one.prompts) : null,
    some(one.examples) || one.sampled?.some((group) => some(group.examples)) ? examplePart(one) : null,
    Number.isFinite(one.density) || one.histogram ? spreadPart(one) : null,
    some(one.top_logits) || some(one.bottom_logits) ? logitPart(one) : null,
    some(one.deembedding) ? readsPart(one) : null,
    some(one.heads) ? headPart(one.heads) : null,
    some(one.pullbacks) ? wiredPart("Fed by lower features", one.pullbacks) : null,
    some(one.feeds) ? wiredPart("Feeds higher features", one.feeds) : null,
    some(one.neighbours) ? neighbourPart(one) : null,
    data.blind ? studyPart(data.blind) : null,
  ].filter(Boolean);
}

function firstWords({ top_logits: top = [] }) {
  return top.slice(0, 3).map((item) => visible(wordAndNumber(item)[0])).join(" ");
}

function drawList() {
  $("list").replaceChildren(...data.features.map((one, k) => h("li", {},
    h("a", { href: `#${k}`, "aria-current": k === at && "true" }, h("b", {}, String(one.feature)), h("small", {}, h("bdi", {}, clip(firstWords(one), 26)))))));
}

function drawFeature() {
  const one = data.features[at];
  const wide = (element) => element.querySelector(".examples, .wired, .steps") !== null;
  const parts = partsOf(one);
  $("feature").replaceChildren(
    h("h2", {}, `Feature ${one.feature} `, h("small", {}, `layer ${one.layer}`)),
    h("div", { class: "wide" }, ...parts.filter(wide)),
    h("div", { class: "narrow" }, ...parts.filter((element) => !wide(element))));
}

function show() {
  const asked = Number.parseInt(location.hash.slice(1), 10);
  at = asked >= 0 && asked < data.features.length ? asked : 0;
  drawList();
  drawFeature();
  $("feature").scrollTop = 0;
}

function step(by) {
  const next = at + by;
  if (next >= 0 && next < data.features.length) location.hash = `#${next}`;
}

function sourceText() {
  const { source, blind } = data;
  const read = source?.kind === "corpus" ? `${source.tokens.toLocaleString("en")} tokens read` : source ? `cards of ${source.path}` : "no corpus read";
  const state = blind ? (blind.revealed ? " · blind until revealed" : " · blind: examples are not shown") : "";
  return `${data.features.length} feature${data.features.length === 1 ? "" : "s"} · ${read}${state}`;
}

$("heading").textContent = data.title;
$("source").textContent = sourceText();
addEventListener("hashchange", show);
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "j") step(1);
  if (event.key === "k") step(-1);
});
listenToTheme(() => {});
show();
