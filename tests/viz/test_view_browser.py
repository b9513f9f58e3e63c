"""Looking at a graph: large ones, zoom and dragging, links under the pointer, light and dark, pictures, cards."""

from __future__ import annotations

import json
import struct
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from tools.browser import NAMES, binary

from pullback.viz import graph_page
from tests.viz import browser, payloads

pytestmark = pytest.mark.skipif(binary() is None, reason=f"no browser: none of {', '.join(NAMES)} is on the path")

CAPITAL = payloads.capital()
CAPITAL["qParams"]["pruningThreshold"] = 1.0
NAMED = {node["clerp"]: node["node_id"] for node in CAPITAL["nodes"] if node["clerp"]}
TEXAS = NAMED["texas"]
CARD = {
    "density": 0.0125,
    "histogram": {"counts": [90, 10, 1], "edges": [0.0, 1.0, 2.0, 3.0]},
    "quantiles": [0.5, 1.5],
    "top_logits": [[" austin", 2.5], " houston"],
    "bottom_logits": [[" paris", -1.5]],
    "deembedding": [[" dallas", 3.25], [" lake", -0.5]],
    "examples": [
        {"tokens": [f" w{k}" for k in range(30)], "activations": [0.0] * 20 + [4.0] + [0.0] * 9, "train_token_ind": 20},
        *({"tokens": ["<b>", "\n"], "activations": [1.0, 2.0]} for _ in range(8)),
    ],
    "sampled": [{"name": "weaker", "examples": [{"tokens": [" z"], "activations": [0.5]}]}],
}


def test_large_graph_stays_fluid(tmp_path: Path) -> None:
    script = """
    const times = { load: Number(document.documentElement.dataset.ready) };
    // The median of several: how long the page works on it, and until the frame after has been drawn.
    const timed = async (name, count, act) => {
      const all = [];
      for (let k = 0; k < count; k++) {
        await nextFrame();
        const start = performance.now();
        act(k);
        await nextFrame();
        all.push(performance.now() - start);
      }
      times[name] = all.sort((a, b) => a - b)[count >> 1];
    };
    const some = $$("#nodes .feature").map((e) => e.dataset.id);
    await timed("hover", 5, (k) => point("pointermove", some[100 + 37 * k]));
    await timed("click", 3, (k) => point("click", some[50 + 41 * k]));
    key("Escape");
    await timed("slider", 3, (k) => setTo("#threshold", String(0.95 - 0.05 * k)));
    await timed("search", 3, (k) => setTo("#search", `tok${k}`));
    setTo("#search", ""); setTo("#threshold", "1"); await soon();
    for (let k = 0; k < 4; k++) $("#zoom-in").click();
    await timed("pan", 7, (k) => { $("#scroll").scrollLeft = 30 * k; $("#scroll").scrollTop = 20 * k; });
    for (const id of some.slice(5, 45)) point("click", id, { shiftKey: true });
    await timed("group", 1, () => $("#make-group").click());
    return { times, zoomed: $("#scroll").scrollWidth / $("#scroll").clientWidth, counts: $("#counts").textContent };
    """
    got = browser.drive(graph_page(payloads.large()), script, tmp_path)
    print({name: round(ms) for name, ms in got["times"].items()})
    assert "3,000 of 3,000 nodes · 100,000 of 100,000 links (5,000 strongest drawn)" in got["counts"]
    assert got["zoomed"] > 1.5
    # Wide bounds: a machine under load must not fail, a quadratic step must.
    bounds = {
        "load": 10_000,
        "hover": 300,
        "click": 1_000,
        "slider": 2_000,
        "search": 1_000,
        "pan": 500,
        "group": 4_000,
    }
    assert {name: ms for name, ms in got["times"].items() if ms > bounds[name]} == {}


def test_links_under_the_pointer_show_their_numbers(tmp_path: Path) -> None:
    feature = payloads.node("0_7_1", "feature", "0", 1, clerp="seven", influence=0.1)
    links = [("E_100_0", 0.75), ("E_101_1", -0.25)]
    graph = payloads.payload(
        [*payloads.leaves(["one", "two"]), feature],
        [{"source": s, "target": "0_7_1", "weight": w} for s, w in links],
        ["one", "two"],
    )
    script = """
    // A point of a cubic with vertical ends: by default half way up, and so half way across.
    const between = (a, b, across = 0.5, up = 0.5) => {
      const [s, t] = [middle(node(a)), middle(node(b))];
      const at = { clientX: s.x + across * (t.x - s.x), clientY: s.y + up * (t.y - s.y), bubbles: true };
      $("#scroll").dispatchEvent(new PointerEvent("pointermove", at));
      return $("#tooltip").hidden ? null : $("#tooltip").innerText;
    };
    const tips = [between("E_100_0", "0_7_1"), between("E_101_1", "0_7_1"), between("E_100_0", "E_101_1")];
    const quarter = [between("E_100_0", "0_7_1", 0.156, 0.283), between("E_100_0", "0_7_1", 0.25, 0.283)];
    point("click", "E_100_0"); point("pointermove", "E_100_0");
    return [...tips, between("E_101_1", "0_7_1"), ...quarter];
    """
    first, second, nothing, out_of_focus, on, beside = browser.drive(graph_page(graph), script, tmp_path)
    for tip, parts in ((first, ("excites", "one", "+0.750", "75%")), (second, ("inhibits", "two", "−0.250", "25%"))):
        assert all(part in tip for part in (*parts, "seven", "Weight", "Share of input"))
    assert nothing is None
    assert out_of_focus is None
    assert (on, beside) == (first, None)


def test_drag_moves_and_shift_drag_chooses(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(graph_page(CAPITAL), encoding="utf-8")

    def drag(tab: browser.Tab, start: tuple[float, float], end: tuple[float, float], **more: Any) -> None:
        tab.mouse("mousePressed", *start, button="left", clickCount=1, **more)
        tab.mouse("mouseMoved", (start[0] + end[0]) / 2, (start[1] + end[1]) / 2, button="left", buttons=1, **more)
        tab.mouse("mouseMoved", *end, button="left", buttons=1, **more)
        tab.mouse("mouseReleased", *end, button="left", clickCount=1, **more)

    with browser.tab() as tab:
        tab.open(page.as_uri())
        tab.mouse("mouseWheel", 400, 400, deltaX=0, deltaY=-120, modifiers=2)
        tab.run("await soon(); for (let k = 0; k < 3; k++) key('+', document.body);")
        empty = tab.run("""
          $("#scroll").scrollLeft = $("#scroll").scrollTop = 0; await soon();
          const box = $("#plot").getBoundingClientRect(); return [box.x + 8, box.y + 8];""")
        drag(tab, (empty[0] + 200, empty[1] + 100), (empty[0] + 80, empty[1] + 40))
        moved = tab.run("""const s = $("#scroll");
          return [s.scrollLeft, s.scrollTop, s.scrollWidth > s.clientWidth, $("#nodes .selected") === null];""")
        tab.run("""while (!$("#zoom-out").disabled) $("#zoom-out").click(); await soon();""")
        inside = tab.run("""const b = $('#nodes [data-id="E_103_3"]').getBoundingClientRect();
          return { box: [b.x - 9, b.y - 9, b.right + 9, b.bottom + 9] };""")["box"]
        drag(tab, (inside[0], inside[1]), (inside[2], inside[3]), modifiers=8)
        chosen = tab.run('return $$("#chosen .go").map((e) => e.dataset.go);')
    assert moved == [120, 60, True, True]
    assert [CAPITAL["nodes"][int(i)]["node_id"] for i in chosen] == ["E_103_3"]


def test_light_and_dark(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(graph_page(CAPITAL), encoding="utf-8")
    look = 'return [getComputedStyle(document.body).backgroundColor, $("#theme").getAttribute("aria-pressed")];'
    switch = '$("#theme").click(); await nextFrame(); ' + look
    with browser.tab() as tab:
        tab.dark(False)
        tab.open(page.as_uri())
        light, dark = tab.run(look), tab.run(switch)
        tab.open("about:blank")
        tab.open(page.as_uri())
        kept = tab.run(look)
        back = tab.run(switch)
        tab.dark()
        system = tab.run("await soon(); " + look)
    assert light == ["rgb(251, 250, 248)", "false"]
    assert dark == ["rgb(21, 23, 27)", "true"]
    assert kept == dark == system
    assert back == light


def test_pictures_are_saved(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(graph_page(CAPITAL), encoding="utf-8")
    with browser.tab() as tab:
        tab.save_into(tmp_path)
        tab.open(page.as_uri())
        tab.run(f'point("click", "{NAMED["dallas"]}"); $("#save summary").click(); $("#save-svg").click();')
        svg = tab.downloads(tmp_path, "graph.svg")
        shown = tab.run("return shownIds().length;")
        tab.run('$("#save-png").click();')
        png = tab.downloads(tmp_path, "graph.png")
    root = ET.fromstring(svg)
    name = "{http://www.w3.org/2000/svg}"
    text = [element.text or "" for element in root.iter(f"{name}text")]
    assert any("dallas" in t for t in text)
    assert {"emb", "L0", "L3", "out"} <= set(text)
    assert len(list(root.iter(f"{name}path"))) > shown
    assert any(path.get("stroke-dasharray") == "5 4" for path in root.iter(f"{name}path"))
    assert not [word for word in (b"var(", b"color(", b"class=", b"data-") if word in svg]
    nodes = [p for p in root.iter(f"{name}path") if "scale" in p.get("transform", "")]
    wide = [float(p.get("stroke-width", 0)) * float(p.get("transform", "").split("scale(")[1][:-1]) for p in nodes]
    assert wide
    assert max(wide) < 5
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    assert (width, height) == (2 * round(float(root.get("width", 0))), 2 * round(float(root.get("height", 0))))


@pytest.mark.parametrize("name", [TEXAS, TEXAS.rsplit("_", 1)[0]])
def test_card_of_a_feature(tmp_path: Path, name: str) -> None:
    script = f"""
    point("click", "{NAMED["dallas"]}");
    const none = $("#card") === null;
    point("click", "{TEXAS}");
    const first = $(".examples details");
    first.open = true; await soon();
    const out = {{ none, text: $("#card").innerText, bars: $$(".histogram rect").length,
      bar: $(".histogram title").textContent, peak: $(".examples .peak").textContent,
      heat: $(".examples .peak").style.getPropertyValue("--heat"), whole: first.querySelectorAll("p span").length,
      drawn: $$(".examples > li").length, bold: $$(".examples span b").length }};
    $("#card .more").click();
    const all = $$(".examples > li").length;
    $(".further").open = true; await soon();
    return {{ ...out, all, weaker: $(".further .examples").innerText }};
    """
    got = browser.drive(graph_page(CAPITAL, cards={name: CARD, "9_9": {}}), script, tmp_path)
    assert got["none"]
    for part in ("1.25% of tokens", "austin", "+2.50", "houston", "paris", "−1.50", "dallas", "+3.25", "4.00", "<b>"):
        assert part in got["text"]
    assert (got["bars"], got["bar"], got["peak"], got["heat"]) == (3, "0.00 to 1.00: 90", " w20", "100%")
    assert (got["whole"], got["drawn"], got["all"], got["bold"]) == (30, 6, 9, 0)
    assert got["weaker"].split() == ["0.500", "z"]


def test_empty_card(tmp_path: Path) -> None:
    script = f'point("click", "{TEXAS}"); return $("#card").innerText;'
    assert "empty" in browser.drive(graph_page(CAPITAL, cards={TEXAS: {}}), script, tmp_path)


def test_every_control_is_reached_by_tab(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(graph_page(CAPITAL), encoding="utf-8")
    with browser.tab() as tab:
        tab.open(page.as_uri())
        reached = []
        for _ in range(24):
            tab.press("Tab")
            reached.append(tab.run("const e = document.activeElement; return e.id || `${e.tagName} ${e.dataset.id}`;"))
    want = {
        "search",
        "threshold",
        "show-errors",
        "show-biases",
        "collapse",
        "zoom-in",
        "SUMMARY undefined",
        "theme",
        "toggle-panel",
    }
    assert want <= set(reached), json.dumps(reached)
    assert any(name.startswith("path ") or name.startswith("g ") for name in reached), json.dumps(reached)
