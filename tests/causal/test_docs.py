"""The examples of docs/CAUSAL.md run as shown, on the model that it speaks of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

import pullback as pb

PAGE = Path(__file__).parents[2] / "docs" / "CAUSAL.md"


def test_the_examples_run() -> None:
    model, sets = pb.zoo.load("tiny-mix"), pb.zoo.transcoders("tiny-mix")
    prompt, other_prompt = (f"the capital of the state containing {city} is" for city in ("dallas", "oakland"))
    graph = pb.attribute(model, sets, prompt)
    layer, pos, feature = graph.top_features(1)[0]
    clean, corrupted = (pb.as_lens(model).to_tokens(p)[None] for p in (prompt, other_prompt))
    answer, other_answer = (model.to_tokens(word, prepend_bos=False)[0, -1:] for word in ("austin", "sacramento"))
    names: dict[str, Any] = {
        **{"pb": pb, "model": model, "sets": sets, "prompt": prompt, "other_prompt": other_prompt, "graph": graph},
        **{"layer": layer, "pos": pos, "feature": feature, "value": 0.0, "a": int(answer), "b": int(other_answer)},
        **{"clean": clean, "corrupted": corrupted, "target": answer, "other": other_answer},
    }
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    assert len(examples) == 5
    for example in examples:
        exec(compile(example, PAGE.name, "exec"), names)
    margins = names["sweep"].margins(int(answer), int(other_answer))
    assert bool((margins.diff() > 0).all()), "the more of these features, the more of the answer"
    assert graph.meta["agreement"]["runs"]["direct"]["spearman"] > 0.99
    assert torch.equal(names["text"].tokens[: clean.shape[1]], clean[0])
    table = names["found"].to_pandas().set_index(["source", "target"])["exact"]
    assert table.abs().max() > 1
