"""Rating a sheet in a browser: with pointer and keys, over a reload, into a file and back."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tools.browser import NAMES, binary

from pullback.viz import SHEET_SCHEMA, sheet_page
from tests.viz import browser

needs_browser = pytest.mark.skipif(binary() is None, reason=f"no browser: none of {', '.join(NAMES)} is on the path")

CONTENT: dict[str, Any] = {
    "sheet": "abc123",
    "items": [
        {
            "examples": [{"tokens": [f"<i>w{k}</i>", " x"], "activations": [0.0, 1.0], "train_token_ind": 1}],
            "sampled": [
                {
                    "name": "Weaker, group 1",
                    "examples": [{"tokens": [" y"], "activations": [0.5], "train_token_ind": 0}],
                }
            ],
        }
        for k in range(5)
    ],
}
STATE = """
const state = () => ({
  title: $("#item h2").textContent, text: $("#item").innerText, progress: $("#source").textContent,
  note: $("#note").value,
  marks: $$("nav button").map((b) => b.className), chosen: $$("input:checked").map((i) => i.value),
});
"""


@needs_browser
def test_rating_and_coming_back(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(sheet_page(CONTENT), encoding="utf-8")
    with browser.tab() as tab:
        tab.save_into(tmp_path)
        tab.open(page.as_uri())
        got = tab.run(f"{STATE} return state();")
        assert (got["title"], got["progress"], got["chosen"]) == ("Feature 1 of 5", "0 of 5 rated", [])
        assert "<i>w0</i> x" in got["text"]
        assert "Weaker, group 1" in got["text"]
        tab.run("$('#rating input[value=maybe]').click(); $('#context input[value=no]').click();")
        tab.run("setTo('#note', 'a letter'); $('#note').focus();")
        tab.press("3")  # in the note, a figure is a figure
        assert tab.run("return $('#note').value;") == "a letter3"
        tab.run("setTo('#note', 'a letter');")
        assert tab.run("$('#note').blur(); return $('#rating input:checked').value;") == "maybe"
        tab.press("ArrowRight")
        tab.press("1")
        tab.press("y")
        tab.run("$('#next').click();")
        tab.press("3")
        tab.press("1")
        tab.press("3")
        got = tab.run(f"{STATE} return state();")
        assert got["title"] == "Feature 3 of 5"
        assert got["marks"] == ["maybe", "interpretable", "uninterpretable", "open", "open"]
        assert (got["progress"], got["chosen"], got["note"]) == ("3 of 5 rated", ["uninterpretable"], "")
        again = {"marks": []}
        until = time.monotonic() + 10
        while again["marks"] != got["marks"] and time.monotonic() < until:
            # Another process may show it, which the browser tells of what was kept a little later.
            tab.open("about:blank")
            tab.open(page.as_uri())
            again = tab.run(f"{STATE} return state();")
        assert (again["title"], again["marks"]) == ("Feature 4 of 5", got["marks"])  # the first that is open
        first = tab.run(f"{STATE} $$('nav button')[0].click(); return state();")
        assert (first["note"], first["chosen"]) == ("a letter", ["maybe", "no"])
        tab.run("$('#save').click();")
        saved = json.loads(tab.downloads(tmp_path, "ratings-abc123.json"))
    assert saved["format"] == "pullback-ratings"
    assert saved["sheet"] == "abc123"
    assert saved["ratings"][:3] == [
        {"rating": "maybe", "context_free": False, "note": "a letter"},
        {"rating": "interpretable", "context_free": True, "note": ""},
        {"rating": "uninterpretable", "context_free": None, "note": ""},
    ]
    assert saved["ratings"][3:] == [{"rating": None, "context_free": None, "note": ""}] * 2
    script = f"""
    {STATE}
    const give = async (text) => {{
      const files = new DataTransfer(); files.items.add(new File([text], "r.json"));
      $("#file").files = files.files; $("#file").dispatchEvent(new Event("change")); await soon();
    }};
    await give("[]"); const refused = $("#source").textContent;
    await give({json.dumps(json.dumps(saved | {"sheet": "other"}))}); const other = $("#source").textContent;
    await give({json.dumps(json.dumps(saved))});
    return {{ refused, other, ...state() }};
    """
    loaded = browser.drive(sheet_page(CONTENT), script, tmp_path)
    assert loaded["refused"] == loaded["other"] == "These are no ratings of this sheet"
    assert (loaded["marks"], loaded["note"]) == (got["marks"], "a letter")


@needs_browser
@pytest.mark.parametrize("size", [(1280, 800), (420, 700)])
def test_it_fits_and_turns_dark(tmp_path: Path, size: tuple[int, int]) -> None:
    script = """
    const paper = () => getComputedStyle(document.body).backgroundColor, before = paper();
    $("#theme").click();
    return { turned: paper() !== before, wide: document.documentElement.scrollWidth <= innerWidth,
      form: $("#form").getBoundingClientRect().bottom <= innerHeight + 1 };
    """
    assert browser.drive(sheet_page(CONTENT), script, tmp_path, size=size) == dict.fromkeys(
        ("turned", "wide", "form"), True
    )


def test_what_is_no_sheet_is_refused() -> None:
    jsonschema.validate(CONTENT, SHEET_SCHEMA)
    page = sheet_page(CONTENT)
    assert "default-src 'none'" in page
    assert not any(word in page for word in ("http://", "https://", "fetch(", "{{"))
    for wrong, message in (
        ({"items": []}, "sheet: items must have at least 1 item"),
        ({"sheet": ""}, "sheet: sheet must not be empty"),
        ({"items": [{"examples": [{"tokens": ["a"], "activations": []}]}]}, r"items\[0\]: examples\[0\].activations"),
    ):
        with pytest.raises(ValueError, match=message):
            sheet_page(CONTENT | wrong)
