"""Blind case studies: say what a feature is from weights and prompts of one's own, then look at the examples
(Dunefsky et al. 2024, section 5.2; METHODS 1.12)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pullback.attribution import FeatureTarget, Graph, attribute
from pullback.interpret.dashboard.board import Dashboard, add_prompt, dashboard
from pullback.interpret.dashboard.prompts import on_prompt
from pullback.lens import as_lens
from pullback.lens.tokens import Prompt
from pullback.training.source import Tokens
from pullback.transcoders import LayeredDictionary

if TYPE_CHECKING:
    import pandas as pd

# What examples of a corpus are, or are made of: a histogram shows none.
HIDDEN = ("examples", "sampled")
STEPS = {"prompt": "prompts", "graph": "graphs", "note": "notes"}


class BlindStudy:
    """Features without their examples. `ask`, `graph` and `note` are written down, and so is when `reveal` was called:
    what a page or a file of the study says was found blind was found blind.

    Histogram, density and neighbours are shown, examples are not.

    Args:
        model, sets, layer, features, tokens, settings: as for `dashboard`.

    Attributes:
        steps: [{"step": "prompt", "graph", "note" or "reveal", "what": text}], in order.
    """

    def __init__(
        self,
        model: Any,
        sets: LayeredDictionary,
        layer: int,
        features: int | Sequence[int] | Tensor | None = None,
        tokens: Tokens | None = None,
        **settings: Any,
    ) -> None:
        self._lens, self._strict = as_lens(model), settings.get("strict", True)
        self._sets = self._lens.fitted(sets, strict=self._strict)
        content = dashboard(self._lens, sets, layer, features, tokens, **settings).content
        visible = [{name: value for name, value in part.items() if name not in HIDDEN} for part in content["features"]]
        hidden = [{name: part[name] for name in HIDDEN if name in part} for part in content["features"]]
        self._shown: dict[str, Any] = content | {"features": visible}
        # Nothing that the study shows holds them.
        self._examples = lambda: hidden
        self.steps: list[dict[str, str]] = []
        for prompt in settings.get("prompts", ()):
            self._step("prompt", self._text(prompt))

    @property
    def dashboard(self) -> Dashboard:
        """What may be seen, with the prompts asked about so far."""
        return Dashboard(self._shown | {"blind": {"revealed": self.revealed, "steps": list(self.steps)}})

    @property
    def revealed(self) -> bool:
        return any(step["step"] == "reveal" for step in self.steps)

    def __repr__(self) -> str:
        return f"BlindStudy({len(self._shown['features'])} features of layer {self._shown['layer']}; {self.used()})"

    def used(self) -> str:
        """How the study went, in words."""
        counts = [
            f"{n} {plural if n != 1 else plural[:-1]}"
            for step, plural in STEPS.items()
            if (n := sum(taken["step"] == step for taken in self._before()))
        ]
        done = ", ".join(counts) or "nothing but the weights"
        return f"examples revealed after {done}" if self.revealed else f"examples not seen; used {done}"

    def ask(self, prompt: Prompt) -> pd.DataFrame:
        """Activations on a prompt: a row a position with its token, a column a feature, named by its id."""
        import pandas as pd

        layer, ids = self._shown["layer"], [part["feature"] for part in self._shown["features"]]
        found = on_prompt(self._lens, self._sets, layer, torch.tensor(ids), prompt)
        add_prompt(self._shown, found)
        self._step("prompt", self._text(prompt))
        columns = {f: own["activations"] for f, own in zip(ids, found, strict=True)}
        return pd.DataFrame({"token": found[0]["tokens"], **columns})

    def graph(self, prompt: Prompt, feature: int | None = None, position: int | None = None, **settings: Any) -> Graph:
        """What makes a feature active on a prompt: the attribution graph of its pre-activation.

        Args:
            feature: None: the only one of the study.
            position: None: where it is strongest.
            settings: of `attribute`.

        Raises ValueError for a feature that is not in the study.
        """
        layer, ids = self._shown["layer"], [part["feature"] for part in self._shown["features"]]
        chosen = ids[0] if feature is None and len(ids) == 1 else feature
        if chosen is None or chosen not in ids:
            raise ValueError(f"graph: name one of the features of this study, {ids}, got {chosen}")
        (found,) = on_prompt(self._lens, self._sets, layer, torch.tensor([chosen]), prompt)
        if position is None:
            position = int(torch.tensor(found["activations"]).argmax())
        self._step("graph", f"{layer}_{chosen} at {position} of {self._text(prompt)}")
        target = FeatureTarget(layer, position, chosen)
        strict = {"strict": self._strict}
        return attribute(self._lens, self._sets, prompt, attribution_targets=[target], **strict | settings)

    def note(self, text: str) -> None:
        """Write down what the features seem to be."""
        self._step("note", text)

    def reveal(self) -> Dashboard:
        """The dashboard with the examples, and how the study went until now."""
        if not self.revealed:
            self._step("reveal", self.used().removeprefix("examples not seen; used "))
        parts = [part | own for part, own in zip(self._shown["features"], self._examples(), strict=True)]
        return Dashboard(self.dashboard.content | {"features": parts})

    def to_dict(self) -> dict[str, Any]:
        return self.dashboard.to_dict()

    def to_json(self, path: str | os.PathLike[str]) -> None:
        self.dashboard.to_json(path)

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """The page of what may be seen."""
        return self.dashboard.to_html(path)

    def _repr_html_(self) -> str:
        return self.dashboard._repr_html_()

    def _text(self, prompt: Prompt) -> str:
        return prompt if isinstance(prompt, str) else "".join(self._lens.to_str_tokens(self._lens.to_tokens(prompt)))

    def _step(self, step: str, what: str) -> None:
        self.steps.append({"step": step, "what": what})

    def _before(self) -> list[dict[str, str]]:
        """Steps up to the reveal."""
        names = [step["step"] for step in self.steps]
        return self.steps[: names.index("reveal")] if self.revealed else self.steps
