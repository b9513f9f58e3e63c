"""`run_study`: one behaviour of one model, from prompts to a page."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pullback._util.atomic import atomic_save
from pullback.causal import Ablation
from pullback.causal.faithful import ERRORS
from pullback.lens import Lens, as_lens
from pullback.studies import page
from pullback.studies.behaviours import GreaterThan, open_behaviour
from pullback.studies.check import Check, Split, causal_check, split
from pullback.studies.circuits import circuit_report, typical
from pullback.studies.control import KILLED, SPARED
from pullback.studies.dictionaries import Dictionaries
from pullback.studies.features import cards
from pullback.studies.greater_than import study_years
from pullback.studies.shares import Shares, direct_shares
from pullback.transcoders import LayeredDictionary

ABLATIONS = ("zero", "mean")


@dataclass(frozen=True)
class Options:
    """n: prompts to test. examples: prompts whose circuit is found. draws: of random features. layer: of greater-than's
    curve; None: the one whose MLP matters most to it. ablation, errors: of faithfulness curves; what is not in a
    circuit becomes "zero", or its "mean" over the prompts that features are chosen on; errors as of
    `faithfulness_curves`."""

    n: int = 64
    examples: int = 2
    draws: int = 20
    seed: int = 0
    layer: int | None = None
    reference: bool = False
    ablation: str = "zero"
    errors: str = "nodes"

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("examples", 0), ("draws", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"study: {name} must be at least {least}, got {getattr(self, name)}")
        for name, known in (("ablation", ABLATIONS), ("errors", ERRORS)):
            if getattr(self, name) not in known:
                raise ValueError(f"study: {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")


def run_study(
    name: str,
    model: Any,
    sets: LayeredDictionary,
    out: str | os.PathLike[str] | None = None,
    *,
    attention: LayeredDictionary | None = None,
    options: Options | None = None,
    verbose: bool = False,
) -> dict[str, Any]:
    """Study "greater-than", "ioi", "induction" or "brackets": which heads, features and tokens carry the answer, and
    whether ablating the features removes it.

    Args:
        model: a TransformerLens model with a tokenizer that has the words of the study.
        sets: transcoders of its MLPs.
        out: folder for `{name}.html` and `{name}.json`; None writes nothing.
        attention: autoencoders of its attention outputs; then features of both are ablated as well.

    Returns:
        the report, as in the JSON.

    Raises:
        ValueError: an unknown study, a tokenizer without its words, transcoders of another model.
    """
    options = options or Options()
    say: Callable[[str], None] = print if verbose else lambda _line: None
    start = time.perf_counter()
    lens = as_lens(model)
    behaviour = open_behaviour(name, lens)
    parts = split(behaviour, lens.d_vocab, options.n, seed=options.seed)
    report: dict[str, Any] = {"study": name, "question": behaviour.question, "model": lens.model_name}
    report["prompts"] = prompt_table(lens, parts)
    if isinstance(behaviour, GreaterThan):
        report["years"] = study_years(lens, sets, behaviour, options.layer, options.reference)
        say(f"layer {report['years']['curve']['layer']}: {report['years']['summary']}")
    report["checks"] = []
    arms = {"MLP features": {"mlp": sets}}
    if attention is not None:
        arms["attention features"] = {"attention": attention}
        arms["MLP and attention features"] = {"mlp": sets, "attention": attention}
    for arm, given in arms.items():
        found = causal_check(Dictionaries(lens, given), parts, arm, draws=options.draws, seed=options.seed)
        say(sentence(found))
        report["checks"].append(found.to_dict() | {"cards": cards(lens, given, found.features)})
    report["shares"] = share_table(direct_shares(lens, sets, parts.test))
    rows = typical(lens, parts.test, options.examples)
    judged = {"ablation": _ablation(options.ablation, lens, sets, parts), "errors": options.errors}
    report["circuits"] = [circuit_report(lens, sets, parts.test, row, draws=options.draws, **judged) for row in rows]
    report["seconds"] = round(time.perf_counter() - start, 1)
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        atomic_save(folder / f"{name}.json", json.dumps(report, indent=2))
        atomic_save(folder / f"{name}.html", page.html(report))
        say(f"wrote {folder / f'{name}.html'} and {folder / f'{name}.json'} after {report['seconds']:.0f} s")
    return report


def sentence(check: Check) -> str:
    """What a check found, in one line."""
    verdict = "holds" if check.holds else "does not hold"
    return (
        f"{check.arm}: ablating {check.k} features takes {check.dropped:.1%} of the margin of {check.n_prompts} "
        f"prompts, as many random active ones {check.spared:.1%} ± {check.spread:.1%} ({len(check.control)} draws, at "
        f"most {max(check.control):.1%}); at least {KILLED:.0%} against at most {SPARED:.0%} {verdict}"
    )


def prompt_table(lens: Lens, parts: Split) -> dict[str, Any]:
    test = parts.test
    margins = test.margins(lens.logits(test.tokens))
    shown = [
        {
            "text": lens.to_str_tokens(test.row(n)),
            "right": lens.to_str_tokens(test.wanted[n].argmax()[None])[0],
            "margin": float(margins[n]),
        }
        for n in range(min(6, len(test)))
    ]
    counts = {"test": len(test), "size": len(parts.size), "choose": len(parts.choose), "keys": len(parts.keys)}
    right = float((margins > 0).double().mean())
    return {"counts": counts, "mean_margin": float(margins.mean()), "positive": right, "examples": shown}


def share_table(shares: Shares) -> dict[str, Any]:
    heads = sorted(shares.heads.items(), key=lambda item: -abs(item[1]))
    return {
        "heads": [{"layer": k, "head": h, "share": share} for (k, h), share in heads],
        "layers": [{"kind": kind, "layer": k, "share": share} for (kind, k), share in sorted(shares.layers.items())],
        "rest": shares.rest,
    }


def _ablation(kind: str, lens: Lens, sets: LayeredDictionary, parts: Split) -> Ablation:
    if kind == "zero":
        return Ablation.zero(lens, sets)
    return Ablation.mean(lens, sets, [parts.choose.row(n) for n in range(len(parts.choose))])
