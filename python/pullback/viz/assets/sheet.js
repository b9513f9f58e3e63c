// A sheet: one feature at a time, its rating, and all ratings kept in this browser until they are saved as a file.

const data = JSON.parse($("data").textContent);
const key = `pullback:sheet:${data.sheet}`;
const unrated = () => ({ rating: null, context_free: null, note: "" });
let ratings = data.items.map(unrated);
let at = 0;

// Ratings of this sheet, as a file or the browser holds them; null for anything else.
function accepted(text) {
  try {
    const { sheet, ratings: found } = JSON.parse(text);
    if (sheet !== data.sheet || found.length !== ratings.length) return null;
    return found.map((own) => ({
      rating: data.scale.includes(own.rating) ? own.rating : null,
      context_free: typeof own.context_free === "boolean" ? own.context_free : null,
      note: String(own.note ?? ""),
    }));
  } catch {
    return null;
  }
}

const asText = () => JSON.stringify({ format: data.format, sheet: data.sheet, ratings }, null, 1);
const nRated = () => ratings.filter((own) => own.rating !== null).length;

function changed(more) {
  Object.assign(ratings[at], more);
  storage.write(key, asText());
  drawList();
  drawProgress();
}

function drawProgress(text = null) {
  $("source").textContent = text ?? `${nRated()} of ${ratings.length} rated`;
}

function drawList() {
  $("list").replaceChildren(...ratings.map((own, k) => h("li", {}, h("button", {
    type: "button", class: own.rating ?? "open", "aria-current": k === at && "true", "aria-label": `Feature ${k + 1}, ${own.rating ?? "not rated"}`,
    onclick: () => show(k),
  }, String(k + 1)))));
}

function show(k) {
  at = Math.max(0, Math.min(ratings.length - 1, k));
  $("item").replaceChildren(h("h2", {}, `Feature ${at + 1} `, h("small", {}, `of ${ratings.length}`)), examplePart(data.items[at]));
  $("item").scrollTop = 0;
  const own = ratings[at];
  for (const input of $("form").querySelectorAll("[type=radio]")) {
    const stands = input.name === "rating" ? own.rating : { true: "yes", false: "no" }[own.context_free];
    input.checked = input.value === stands;
  }
  $("note").value = own.note;
  $("back").disabled = at === 0;
  $("next").disabled = at === ratings.length - 1;
  drawList();
}

function choose(name, value) {
  $("form").querySelector(`[name=${name}][value=${value}]`).checked = true;
  changed(name === "rating" ? { rating: value } : { context_free: value === "yes" });
}

function listenToKeys() {
  const does = { ArrowRight: () => show(at + 1), ArrowLeft: () => show(at - 1), y: () => choose("context", "yes"), n: () => choose("context", "no") };
  data.scale.forEach((value, k) => { does[k + 1] = () => choose("rating", value); });
  addEventListener("keydown", (event) => {
    const act = does[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey || event.target === $("note")) return;
    event.preventDefault(); // arrows would move between the radio buttons
    act();
  });
}

async function take(file) {
  const found = accepted(await file.text());
  if (!found) return drawProgress("These are no ratings of this sheet");
  ratings = found;
  changed({});
  show(at);
}

$("heading").textContent = data.title;
$("rating").append(...data.scale.map((value, k) => h("label", {},
  h("input", { type: "radio", name: "rating", value }), h("span", {}, `${value} `, h("kbd", {}, String(k + 1))))));
$("form").addEventListener("change", ({ target }) => { if (target.type === "radio") choose(target.name, target.value); });
$("form").addEventListener("submit", (event) => event.preventDefault());
$("note").addEventListener("input", () => changed({ note: $("note").value }));
$("back").addEventListener("click", () => show(at - 1));
$("next").addEventListener("click", () => show(at + 1));
$("save").addEventListener("click", () => download(`ratings-${data.sheet}.json`, "application/json", asText()));
$("load").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => { if ($("file").files.length) take($("file").files[0]); $("file").value = ""; });
ratings = accepted(storage.read(key)) ?? ratings;
const open = ratings.findIndex((own) => own.rating === null);
listenToKeys();
listenToTheme(() => {});
show(open < 0 ? 0 : open);
drawProgress();
