"""What a reader adds to a graph: supernodes with summed links, labels, pins; kept, taken out, taken in."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from tools.browser import NAMES, binary

from pullback.viz import graph_page, notebook_html
from tests.viz import browser, payloads

pytestmark = pytest.mark.skipif(binary() is None, reason=f"no browser: none of {', '.join(NAMES)} is on the path")

CAPITAL = payloads.capital()
NAMED = {node["clerp"]: node["node_id"] for node in CAPITAL["nodes"] if node["clerp"]}
TEXAS = CAPITAL["qParams"]["supernodes"][0][1:]
CITIES = [NAMED["dallas"], NAMED["large US cities"], NAMED["say austin"]]
MAKE = f"""
setTo("#threshold", "1"); await soon();
for (const id of {json.dumps(CITIES)}) point("click", id, {{ shiftKey: true }});
$("#group-name").value = "cities"; $("#make-group").click();
const go = (name) => $$("#groups .go").find((e) => e.innerText.includes(name)).click();
const table = (name) => Object.fromEntries($$(`section[aria-label="${{name}}"] tbody tr`).map(
  (r) => [r.querySelector(".name").innerText + "@" + r.dataset.go, Number(r.children[1].innerText.replace("−", "-"))]));
const rest = () => $$(".links .more").forEach((e) => {{ while (!e.hidden) e.click(); }});
const groups = () => $$("#groups .name").map((e) => e.innerText);
"""


def sums(groups: dict[str, list[str]]) -> dict[tuple[str, str], float]:
    """Links between what stands when supernodes are collapsed; links inside one are none."""
    home = {member: name for name, members in groups.items() for member in members}
    total: dict[tuple[str, str], float] = defaultdict(float)
    for link in CAPITAL["links"]:
        s, t = home.get(link["source"], link["source"]), home.get(link["target"], link["target"])
        if s != t:
            total[s, t] += link["weight"]
    return total


def test_links_of_a_supernode_are_sums(tmp_path: Path) -> None:
    script = f"""{MAKE}
    const chosen = $("#chosen");
    $("#collapse").click();
    rest();
    const inputs = table("Inputs"), outputs = table("Outputs"), total = $("#panel tfoot .number").innerText;
    const shown = shownIds();
    point("click", "{NAMED["say a capital"]}"); rest();
    const across = table("Inputs");
    $("#collapse").click(); rest();
    const apart = table("Inputs");
    return {{ inputs, outputs, total, shown, across, apart, groups: groups(), chosen: chosen === null }};
    """
    got = browser.drive(graph_page(CAPITAL), script, tmp_path)
    ids = [node["node_id"] for node in CAPITAL["nodes"]]
    groups = {"group_0": TEXAS, "group_1": CITIES}
    name_of = [*ids, "group_0", "group_1"]
    link = sums(groups)

    def named(table: dict[str, float]) -> dict[str, float]:
        return {name_of[int(key.rsplit("@", 1)[1])]: weight for key, weight in table.items()}

    assert got["groups"] == ["Texas", "cities"]
    assert got["chosen"]
    assert set(got["shown"]) >= {"group_0", "group_1"}
    assert not set(got["shown"]) & {*TEXAS, *CITIES}
    want = {s: w for (s, t), w in link.items() if t == "group_1"}
    assert named(got["inputs"]) == pytest.approx(want, rel=6e-3, abs=1e-9)
    assert "group_0" in want
    assert float(got["total"].replace("−", "-")) == pytest.approx(sum(want.values()), rel=6e-3)
    outputs = {t: w for (s, t), w in link.items() if s == "group_1"}
    assert named(got["outputs"]) == pytest.approx(outputs, rel=6e-3, abs=1e-9)
    # Another node's inputs name the supernode when it is one node, and its members when it is not.
    other = NAMED["say a capital"]
    assert named(got["across"]) == pytest.approx({s: w for (s, t), w in link.items() if t == other}, rel=6e-3, abs=1e-9)
    single = {e["source"]: e["weight"] for e in CAPITAL["links"] if e["target"] == other}
    assert named(got["apart"]) == pytest.approx(single, rel=6e-3, abs=1e-9)


def test_supernodes_are_changed_and_dissolved(tmp_path: Path) -> None:
    extra = NAMED["capital-of relation"]
    script = f"""{MAKE}
    const out = {{}};
    $("#rename").click();
    $("#name-field").value = "towns"; key("Enter", $("#name-field"));
    out.renamed = groups();
    $("#members [data-leave]").click();
    out.left = $$("#members .name").map((e) => e.innerText);
    point("click", "{extra}", {{ shiftKey: true }});
    $("#add-to").selectedIndex = 2;
    $("#add-to").dispatchEvent(new Event("change", {{ bubbles: true }}));
    out.added = $$("#members .name").map((e) => e.innerText);
    out.rings = $$("#rings rect").length;
    point("click", "{extra}", {{ shiftKey: true }});
    $("#group-name").value = "alone"; $("#make-group").click();
    out.moved = groups();
    go("towns"); $("#dissolve").click();
    out.dissolved = groups();
    out.announced = $("#announce").textContent;
    return out;
    """
    got = browser.drive(graph_page(CAPITAL), script, tmp_path)
    assert got["renamed"] == ["Texas", "towns"]
    assert got["left"] == ["large US cities", "say austin"]
    assert got["added"] == ["large US cities", "say austin", "capital-of relation"]
    assert got["rings"] == len(TEXAS) + 3
    assert got["moved"] == ["Texas", "towns", "alone"]
    assert got["dissolved"] == ["Texas", "alone"]
    assert got["announced"].startswith("Selected Feature")


def test_keyboard_makes_a_supernode(tmp_path: Path) -> None:
    script = f"""setTo("#threshold", "1"); await soon();
    for (const id of {json.dumps(CITIES)}) {{ node(id).focus(); key("s"); }}
    key("g");
    const field = document.activeElement.id;
    $("#group-name").value = "by key"; key("Enter");
    const made = $$("#groups .name").map((e) => e.innerText);
    document.activeElement.blur(); key("c", document.body);
    const collapsed = shownIds().filter((id) => id.startsWith("group_"));
    return {{ field, made, collapsed }};
    """
    got = browser.drive(graph_page(CAPITAL), script, tmp_path)
    assert got["field"] == "group-name"
    assert got["made"] == ["Texas", "by key"]
    assert sorted(got["collapsed"]) == ["group_0", "group_1"]


def test_notes_are_kept_taken_out_and_taken_in(tmp_path: Path) -> None:
    dallas, page = NAMED["dallas"], tmp_path / "page.html"
    page.write_text(graph_page(CAPITAL), encoding="utf-8")
    with browser.tab() as tab:
        tab.save_into(tmp_path)
        tab.open(page.as_uri())
        tab.run(f"""{MAKE} point("click", "{dallas}"); key("p"); $("#rename").click();
          $("#name-field").value = "city of dallas"; key("Enter", $("#name-field")); await soon();
          $("#save-notes").click();""")
        saved = json.loads(tab.downloads(tmp_path, "graph.notes.json"))["qParams"]
        tab.open("about:blank")
        tab.open(page.as_uri())
        look = """const texts = (selector) => $$(selector).map((e) => e.innerText);
          return { groups: texts("#groups .name"), label: node("%s").getAttribute("aria-label"),
                   pinned: texts("#pinned .name"), reset: $("#reset-notes").disabled };"""
        again = tab.run(look % dallas)
        tab.run("""$("#reset-notes").click(); await soon();""")
        reset = tab.run('setTo("#threshold", "1"); await soon();' + look % dallas)
        (tmp_path / "other.json").write_text(json.dumps({"qParams": saved}))
        handle = tab.call("Runtime.evaluate", expression='document.getElementById("notes-file")')["result"]["objectId"]
        tab.call("DOM.setFileInputFiles", files=[str(tmp_path / "other.json")], objectId=handle)
        taken = tab.run("await soon();" + look % dallas)
    assert saved["supernodes"] == [["Texas", *TEXAS], ["cities", *CITIES]]
    assert saved["pinnedIds"] == [dallas]
    assert json.loads(saved["clerps"]) == [[dallas, "city of dallas"]]
    assert saved["linkType"] == "both"
    for state in (again, taken):
        assert state["groups"] == ["Texas", "cities"]
        assert "city of dallas" in state["label"]
        assert state["pinned"] == ["city of dallas"]
        assert not state["reset"]
    assert reset["groups"] == ["Texas"]
    assert "city of dallas" not in reset["label"]
    assert reset["pinned"] == []
    # What was taken out is what a page can come with.
    given = browser.drive(graph_page(CAPITAL | {"qParams": saved}), look % dallas, tmp_path)
    assert given["groups"] == ["Texas", "cities"]
    assert given["pinned"] == ["city of dallas"]
    assert given["reset"]


@pytest.mark.parametrize(
    "params",
    [
        {"clerps": "not json"},
        {"clerps": [["nobody", "x"], ["too", "many", "parts"], 7]},
        {"supernodes": [["empty"], ["unknown", "nobody"], ["twice", TEXAS[0], TEXAS[0]], ["taken", TEXAS[0]]]},
        {"clerps": None, "supernodes": [["</script><b>", *TEXAS]]},
    ],
)
def test_foreign_notes_do_no_harm(tmp_path: Path, params: dict[str, Any]) -> None:
    script = """$("#collapse").click(); await soon();
    return { groups: $$("#groups .name").map((e) => e.innerText), bold: $$("#panel b").length };"""
    got = browser.drive(graph_page(CAPITAL | {"qParams": CAPITAL["qParams"] | params}), script, tmp_path)
    known = [name for name, *ids in params.get("supernodes", [["Texas", *TEXAS]]) if name not in ("empty", "unknown")]
    assert got["groups"] == [name for name in known if name != "taken"]
    assert got["bold"] == 0


def test_a_feature_has_one_label_at_all_positions(tmp_path: Path) -> None:
    last = len(payloads.PROMPT) - 1
    nodes = [*CAPITAL["nodes"], *(payloads.node(f"1_99_{p}", "feature", "1", p, influence=0.1) for p in (3, last))]
    script = """point("click", "1_99_3"); $("#rename").click();
    $("#name-field").value = "both"; key("Enter", $("#name-field"));
    const named = (e) => e.getAttribute("aria-label").includes(" both");
    return $$("#nodes .feature").filter(named).map((e) => e.dataset.id);"""
    got = browser.drive(graph_page(CAPITAL | {"nodes": nodes}), script, tmp_path)
    assert set(got) == {"1_99_3", f"1_99_{last}"}


def test_a_frame_without_storage_still_takes_notes(tmp_path: Path) -> None:
    got = browser.drive(notebook_html(CAPITAL), f"{MAKE} await soon(); return groups();", tmp_path, frame=True)
    assert got == ["Texas", "cities"]
