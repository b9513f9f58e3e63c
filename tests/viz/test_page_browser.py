"""The page in a browser: what it shows, and what pointer, keyboard, search, switches and the address do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tools.browser import NAMES, binary

from pullback.viz import graph_page, notebook_html
from tests.viz import browser, payloads

pytestmark = pytest.mark.skipif(binary() is None, reason=f"no browser: none of {', '.join(NAMES)} is on the path")

CAPITAL = payloads.capital()
NODES = {node["node_id"]: node for node in CAPITAL["nodes"]}
NAMED = {node["clerp"]: node["node_id"] for node in CAPITAL["nodes"] if node["clerp"]}
ALWAYS = ("embedding", "position", "logit")


def ids(threshold: float = 0.8, *, errors: bool = True, biases: bool = False, also: tuple[str, ...] = ()) -> set[str]:
    """The nodes that should be on the page, by the rule of the pruning slider."""
    hidden = set() if errors else {"error"}
    hidden |= set() if biases else {"bias", "own"}

    def kept(node: dict[str, Any]) -> bool:
        if node["kind"] in ALWAYS or node["node_id"] in also:
            return True
        owner = NODES.get(node["node_id"].removeprefix("own_")) if node["kind"] == "own" else None
        return node["kind"] not in hidden and node["influence"] <= threshold + 1e-9 and (owner is None or kept(owner))

    return {node["node_id"] for node in CAPITAL["nodes"] if kept(node)}


def linked(node_id: str, end: str) -> list[dict[str, Any]]:
    return [link for link in CAPITAL["links"] if link[end] == node_id]


def with_params(**params: Any) -> dict[str, Any]:
    return CAPITAL | {"qParams": CAPITAL["qParams"] | params}


def test_layout_and_switches(tmp_path: Path) -> None:
    script = """
    const first = shownIds();
    const where = Object.fromEntries($$("#nodes .node").map((e) => [e.dataset.id, middle(e)]));
    const columns = $$("#tokens .token").map((e) => { const b = e.getBoundingClientRect(); return [b.left, b.right]; });
    const counts = $("#counts").textContent;
    setTo("#threshold", "0.5"); await soon();
    const half = shownIds();
    $("#show-errors").click(); const noErrors = shownIds();
    $("#show-biases").click(); setTo("#threshold", "1"); await soon();
    const all = shownIds();
    const before = $("#world").clientWidth;
    $("#toggle-panel").click();
    return { first, half, noErrors, all, where, columns, counts, wider: $("#world").clientWidth - before,
             scores: $("#scores").textContent, prompt: $("#prompt").textContent };
    """
    got = browser.drive(graph_page(CAPITAL), script, tmp_path)
    assert len(got["first"]) == len(set(got["first"]))
    assert set(got["first"]) == ids(0.8)
    assert set(got["half"]) == ids(0.5)
    assert set(got["noErrors"]) == ids(0.5, errors=False)
    assert set(got["all"]) == ids(1.0, errors=False, biases=True)
    assert got["wider"] > 200
    assert got["counts"].startswith(f"{len(ids(0.8))} of {len(NODES)} nodes · ")
    assert got["prompt"] == CAPITAL["metadata"]["prompt"]
    assert all(part in got["scores"] for part in ("Replacement", "71%", "Completeness", "90%", "Check", "3.1e-7"))
    heights: dict[str, list[float]] = {}
    for node_id, at in got["where"].items():
        node = NODES[node_id]
        heights.setdefault(node["layer"], []).append(at["y"])
        if node["kind"] != "logit":
            left, right = got["columns"][node["ctx_idx"]]
            assert left < at["x"] < right
    for below, above in zip(("E", "0", "1", "2", "3"), ("0", "1", "2", "3", "5"), strict=True):
        assert max(heights[above]) < min(heights[below])


def test_hover_shows_facts_and_neighbours(tmp_path: Path) -> None:
    target = NAMED["texas at last token"]
    script = f"""
    point("pointermove", "{target}");
    const tip = $("#tooltip").innerText;
    const lit = $$("#nodes .lit").map((e) => e.dataset.id);
    const negative = $$("#nodes .lit.negative").map((e) => e.dataset.id);
    const canvas = $("#focus-links");
    const painted = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((v) => v);
    $("#scroll").dispatchEvent(new PointerEvent("pointerleave"));
    return {{ tip, lit, negative, painted, after: $("#tooltip").hidden && !$("#stage").matches(".focused") }};
    """
    got = browser.drive(graph_page(CAPITAL), script, tmp_path)
    node = NODES[target]
    near = {e["source"]: e["weight"] for e in linked(target, "target")}
    near |= {e["target"]: e["weight"] for e in linked(target, "source")}
    shown = ids(0.8)
    assert set(got["lit"]) == (near.keys() & shown) | {target}
    assert set(got["negative"]) == {i for i, weight in near.items() if weight < 0 and i in shown}
    assert got["painted"]
    assert got["after"]
    layer, feature, pos = target.split("_")
    facts = (f"Layer\n{layer}", f"{pos} is", feature, "Activation", "Pre-activation", "within first")
    for part in ("Feature", "texas at last token", *facts):
        assert part in got["tip"]
    assert f"{node['activation']:#.3g}" in got["tip"]


def test_click_lists_inputs_and_outputs_and_rows_lead_on(tmp_path: Path) -> None:
    target = NAMED["say austin"]
    script = f"""
    point("click", "{target}");
    const rows = (name) => $$(`section[aria-label="${{name}}"] tbody tr`);
    const table = (name) => rows(name).map((r) => [...r.children].map((c) => c.innerText));
    const counts = $$("#panel h3 small").map((e) => e.textContent);
    const inputs = table("Inputs"), outputs = table("Outputs");
    const balance = $("#panel tfoot").innerText;
    const more = $('section[aria-label="Inputs"] .more');
    more.click();
    const all = table("Inputs").length;
    const pressed = node("{target}").getAttribute("aria-pressed");
    const firstSource = $('section[aria-label="Inputs"] tbody tr');
    firstSource.querySelector("button").click();
    const heading = $("#selected-node h2").textContent, focused = document.activeElement.dataset.id;
    return {{ counts, inputs, outputs, balance, all, pressed, heading, focused }};
    """
    got = browser.drive(graph_page(CAPITAL), script, tmp_path)
    inputs = sorted(linked(target, "target"), key=lambda e: -abs(e["weight"]))
    total = sum(abs(e["weight"]) for e in inputs)
    assert got["counts"] == [str(len(inputs)), str(len(linked(target, "source")))]
    assert got["all"] == len(inputs) > len(got["inputs"]) == 40
    number = [float(row[1].replace("−", "-")) for row in got["inputs"]]
    assert number == pytest.approx([e["weight"] for e in inputs[:40]], rel=6e-3)
    assert got["inputs"][0][2] == f"{round(100 * abs(inputs[0]['weight']) / total)}%"
    assert f"{sum(e['weight'] for e in inputs):#.3g}" in got["balance"]
    assert got["pressed"] == "true"
    assert got["focused"] == inputs[0]["source"]
    assert got["heading"] == NODES[inputs[0]["source"]]["clerp"]


def test_pins_stay_and_are_labelled(tmp_path: Path) -> None:
    one, two = NAMED["texas"], NAMED["dallas"]
    script = f"""
    setTo("#threshold", "1"); await soon();
    point("click", "{one}", {{ ctrlKey: true }});
    point("click", "{two}"); key("p");
    setTo("#threshold", "0"); key("Escape"); await soon();
    const shown = shownIds();
    const labels = $$("#labels .label:not(.group) text").map((e) => e.textContent.slice(1, -1));
    const listed = $$("#pinned .name").map((e) => e.textContent);
    $("#pinned [data-unpin]").click();
    const left = $$("#pinned .name").map((e) => e.textContent);
    $("#unpin-all").click();
    return {{ shown, labels, listed, left, none: $("#pinned") === null, supernodes: $$("#labels .group").length }};
    """
    got = browser.drive(graph_page(CAPITAL), script, tmp_path)
    assert set(got["shown"]) == ids(0.0, also=(one, two))
    assert sorted(got["labels"]) == ["dallas", "texas"]
    assert got["listed"] == ["texas", "dallas"]
    assert got["left"] == ["dallas"]
    assert got["none"]
    assert got["supernodes"] == 0


def test_search(tmp_path: Path) -> None:
    layer, feature, _ = NAMED["say austin"].split("_")
    script = f"""
    const ask = (text) => {{
      setTo("#search", text);
      return [$("#search-count").textContent, $$("#nodes .hit").map((e) => e.dataset.id)];
    }};
    const out = {{ label: ask("Say A"), pair: ask("{layer}:{feature}"), digits: ask("{feature}") }};
    out.token = ask("austin");
    out.nothing = ask("zebra");
    out.blank = ask("  ");
    ask("say austin");
    key("Enter", $("#search"));
    out.selected = $("#nodes .selected").dataset.id;
    document.activeElement.blur();
    key("/", document.body);
    out.focus = document.activeElement.id;
    key("Escape");
    out.cleared = $("#search").value;
    return out;
    """
    got = browser.drive(graph_page(with_params(pruningThreshold=1.0)), script, tmp_path)
    named = {NAMED["say austin"], NAMED["say a capital"], NAMED["say a texan city"]}
    assert set(got["label"][1]) == named
    assert got["label"][0] == f"{len(named)} found"
    assert got["pair"] == ["1 found", [NAMED["say austin"]]]
    assert NAMED["say austin"] in got["digits"][1]
    assert set(got["token"][1]) == {NAMED["say austin"], NAMED['Output "austin" (p=0.620)']}
    assert got["nothing"] == ["0 found", []]
    assert got["blank"] == ["", []]
    assert got["selected"] == NAMED["say austin"]
    assert got["focus"] == "search"
    assert got["cleared"] == ""


def test_keyboard(tmp_path: Path) -> None:
    script = """
    const at = () => document.activeElement.dataset.id;
    const door = $$("#nodes [tabindex='0']");
    node("E_103_3").focus();
    const path = [];
    for (const way of ["Right", "Right", "Left", "Up", "Up", "Down"]) { key(`Arrow${way}`); path.push(at()); }
    const lit = $$("#nodes .lit").length, tabbable = $$("#nodes [tabindex='0']").map((e) => e.dataset.id);
    key("Enter");
    const selected = $("#nodes .selected").dataset.id, panel = $("#selected-node") !== null;
    key("p"); const pinned = $$("#pinned li").length;
    key("e"); const errors = $("#show-errors").checked;
    key("b"); const biases = $("#show-biases").checked;
    key("Escape");
    const cleared = $("#nodes .selected") === null;
    key("?", document.body); const open = $("#help").open; $("#help").close();
    node("E_103_3").focus(); for (let k = 0; k < 9; k++) key("ArrowUp");
    const top = at(); key("ArrowUp");
    const named = (e) => e.getAttribute("role") === "button" && e.getAttribute("aria-label").includes("position");
    return { doors: door.length, path, lit, tabbable, selected, panel, pinned, errors, biases, cleared, open, top,
             stays: at(), roles: $$("#nodes .node").every(named) };
    """
    got = browser.drive(graph_page(CAPITAL), script, tmp_path)
    assert got["doors"] == 1
    assert got["path"][:3] == ["P_3", "E_104_4", "P_3"]
    assert [NODES[i]["layer"] for i in got["path"][3:]] == ["0", "1", "0"]
    assert got["tabbable"] == got["path"][-1:] == [got["selected"]]
    assert got["lit"] > 1
    assert got["panel"]
    assert got["pinned"] == 1
    assert (got["errors"], got["biases"]) == (False, True)
    assert got["cleared"]
    assert got["open"]
    assert NODES[got["top"]]["kind"] == "logit"
    assert got["stays"] == got["top"]
    assert got["roles"]


def test_address_is_written_and_wins_over_the_file(tmp_path: Path) -> None:
    pinned, clicked = NAMED["capital / money"], NAMED["say austin"]
    graph = with_params(pinnedIds=[NAMED["texas"]], clickedId=NAMED["dallas"], pruningThreshold=0.9)
    script = """
    const state = () => ({ pinned: $$("#nodes .pinned").map((e) => e.dataset.id),
      clicked: $("#nodes .selected").dataset.id, threshold: $("#threshold").value });
    const before = location.hash, initial = state();
    setTo("#threshold", "0.3"); await soon();
    const hash = location.hash;
    location.hash = "#pinnedIds=nonsense&clickedId=E_100_0&pruningThreshold=7"; await soon();
    return { before, initial, hash, later: state() };
    """
    page = graph_page(graph)
    from_file = browser.drive(page, script, tmp_path)
    assert from_file["before"] == ""
    assert from_file["initial"] == {"pinned": [NAMED["texas"]], "clicked": NAMED["dallas"], "threshold": "0.9"}
    assert f"clickedId={NAMED['dallas']}" in from_file["hash"]
    assert "pruningThreshold=0.3" in from_file["hash"]
    assert from_file["later"] == {"pinned": [], "clicked": "E_100_0", "threshold": "0.9"}
    fragment = f"#pinnedIds={pinned}&clickedId={clicked}&pruningThreshold=0.42"
    restored = browser.drive(page, script, tmp_path, fragment=fragment)
    assert restored["initial"] == {"pinned": [pinned], "clicked": clicked, "threshold": "0.42"}


def test_positions_emphasise(tmp_path: Path) -> None:
    script = """
    const on = () => $$("#nodes .node:not(.off)").map((e) => e.dataset.id);
    const counts = () => $("#counts").textContent;
    const before = counts();
    $('#tokens [data-pos="2"]').click(); const one = on(), fewer = counts();
    $('#tokens [data-pos="7"]').dispatchEvent(new MouseEvent("click", { ctrlKey: true, bubbles: true }));
    const two = on();
    key("Escape"); return { one, two, none: $$("#nodes .off").length, before, fewer, after: counts() };
    """
    got = browser.drive(graph_page(CAPITAL), script, tmp_path)
    shown = ids(0.8)
    assert set(got["one"]) == {i for i in shown if NODES[i]["ctx_idx"] == 2}
    assert set(got["two"]) == {i for i in shown if NODES[i]["ctx_idx"] in (2, 7)}
    assert got["none"] == 0
    assert got["before"] == got["after"] != got["fewer"]


LOOK = """
setTo("#search", "a"); setTo("#search", "");
for (const id of shownIds().slice(-60)) { point("pointermove", id); point("click", id); }
key("p"); await soon();
const tokens = $$("#tokens bdi").map((e) => e.textContent);
const outside = $$("#nodes .node").filter((e) => !(middle(e).x >= 0)).length;
return { tokens, outside, title: document.title, images: $$("img").length, scripts: $$("script").length,
         nodes: shownIds().length, overflow: document.documentElement.scrollWidth - innerWidth,
         empty: !$("#empty").hidden };
"""


def test_awkward_text_is_shown_as_text(tmp_path: Path) -> None:
    graph = payloads.awkward()
    got = browser.drive(graph_page(graph), LOOK, tmp_path, size=(900, 600))
    assert got["title"].startswith("</script><script>")
    assert got["images"] == 0
    assert got["scripts"] == 2
    assert got["tokens"][2:7] == ["שלום", "مرحبا", "👩‍👩‍👧‍👦", "⏎", "∅"]
    assert got["tokens"][7] == "x" * 39 + "…"
    assert got["tokens"][8] == "\\u202edesrever"
    assert got["overflow"] <= 0
    assert got["outside"] == 0


@pytest.mark.parametrize(("tokens", "n_nodes"), [(["hello"], 2), ([""], 2), ([f" w{i}" for i in range(200)], 400)])
def test_graphs_without_features(tmp_path: Path, tokens: list[str], n_nodes: int) -> None:
    got = browser.drive(graph_page(payloads.bare(tokens)), LOOK, tmp_path, size=(900, 600))
    assert got["nodes"] == n_nodes
    assert got["empty"]
    assert got["overflow"] <= 0


def test_no_nodes_at_all(tmp_path: Path) -> None:
    got = browser.drive(graph_page(payloads.payload([], [], ["a"])), LOOK.replace('key("p");', ""), tmp_path)
    assert got["nodes"] == 0


def test_foreign_graph_without_our_extras(tmp_path: Path) -> None:
    foreign = json.loads(json.dumps(CAPITAL))
    foreign["nodes"] = [n for n in foreign["nodes"] if n["kind"] in ("feature", "error", "embedding", "logit")]
    kept = {n["node_id"] for n in foreign["nodes"]}
    foreign["links"] = [e for e in foreign["links"] if {e["source"], e["target"]} <= kept]
    for node in foreign["nodes"]:
        del node["kind"], node["preactivation"]
    script = """
    const kinds = $$("#nodes .node").map((e) => [e.dataset.id, e.getAttribute("class").split(" ")[1]]);
    return { kinds, said: node("%s").getAttribute("aria-label") };
    """
    got = browser.drive(graph_page(foreign), script % NAMED["dallas"], tmp_path)
    assert all(NODES[node_id]["kind"] == kind for node_id, kind in got["kinds"])
    assert {node_id for node_id, _ in got["kinds"]} == ids(0.8) & kept
    assert got["said"].startswith(f"Feature {NAMED['dallas'].split('_')[1]} dallas, layer 0, position 7")


def test_page_works_in_a_notebook_frame(tmp_path: Path) -> None:
    target = NAMED["texas at last token"]
    script = f"""point("click", "{target}"); key("p"); setTo("#threshold", "0.4"); await soon();
    return {{ selected: $("#nodes .selected").dataset.id, pinned: $$("#pinned li").length, origin: self.origin }};"""
    got = browser.drive(notebook_html(CAPITAL), script, tmp_path, frame=True)
    assert got == {"selected": target, "pinned": 1, "origin": "null"}
