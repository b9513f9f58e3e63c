"""The examples of docs/DASHBOARDS.md run as shown, and what they say of tiny-mix is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "DASHBOARDS.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    assert len(examples) == 3
    for example in examples:
        exec(compile(example, PAGE.name, "exec"), names)
    assert {path.name for path in tmp_path.iterdir()} == {"features.html", "features.json", "sheet.html", "key.json"}
    card = names["board"][229]
    assert card["examples"][0]["tokens"][card["examples"][0]["train_token_ind"]] == "clarksville"
    assert [token for token, _ in card["deembedding"][:2]] == ["clarksville", "michigan"]
    said = re.findall(r'study.used\(\) +# "(.*?)"', PAGE.read_text())
    assert said[0] == "examples not seen; used 2 prompts, 1 graph, 1 note"
    assert said[1] == names["study"].used()
    assert len(names["key"]["items"]) == 20


def test_the_table_names_every_part() -> None:
    from pullback.viz import DASHBOARD_SCHEMA

    parts = set(DASHBOARD_SCHEMA["properties"]["features"]["items"]["properties"]) - {"layer", "feature"}
    named = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", PAGE.read_text(), flags=re.M))))
    assert named == parts
