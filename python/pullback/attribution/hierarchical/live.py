"""One forward pass of the model in which everything that can be a node is a tensor with a gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.lens import Features, Inserted, Lens, Trace, inserted
from pullback.lens import record as rec
from pullback.lens.inserted import LINEAR
from pullback.lens.scores import head_scores
from pullback.transcoders import LayeredDictionary


class Node(NamedTuple):
    """Candidates at one site: features that are active, scores that the mask lets through.

    Gates stand at `values`, so that a target that is a node itself, taken from `read`, is not gated.
    """

    places: Tensor  # Int64[Tensor, 'n 2'], (position, feature); of scores Int64[Tensor, 'n 3'], (head, to, from)
    values: Tensor  # (n), what the model goes on with
    read: Tensor  # (n), the same numbers, as functions of what lies below


@dataclass(frozen=True, eq=False)
class LivePass:
    """What a target is a function of.

    Attributes:
        logits: (T, V), before any soft cap.
        features: of each dictionary, by site: `features[site].at(pos, feature)` is a target.
        scores: attention scores by site, before any soft cap, where they are nodes.
        at: {site: activations (T, ...)} at the sites that were asked for.
    """

    lens: Lens
    trace: Trace
    inserted: Inserted
    logits: Tensor
    scores: Mapping[str, Node]
    at: Mapping[str, Tensor]

    @property
    def features(self) -> Mapping[str, Features]:
        return self.inserted.features

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """Candidates by site."""

        def node(f: Features) -> Node:
            return Node(torch.stack([f.acts.rows(), f.acts.indices.long()], 1), f.acts.values, f.read)

        return {site: node(f) for site, f in self.features.items()} | dict(self.scores)


def live_pass(
    lens: Lens,
    base: Trace,
    transcoders: LayeredDictionary | None,
    attention_saes: LayeredDictionary | None,
    score_layers: Iterable[int],
    sites: Sequence[str],
    *,
    cut: bool,
) -> LivePass:
    """Run the prompt of `base`; with `cut`, every node is detached from those below it."""
    scores: dict[str, Node] = {}
    edits = [edit for i in score_layers for edit in _score_edits(lens, base, i, scores, cut)]
    detach = (*LINEAR, "features") if cut else LINEAR
    with torch.enable_grad(), inserted(lens, transcoders, attention_saes, detach=detach, strict=False) as run:
        logits, seen = rec.record(lens.model, base.tokens[None], sites, edits)
        before_cap = lens.uncapped(logits[0].to(lens.device, lens.compute_dtype))
    return LivePass(lens, base, run, before_cap, scores, {site: t[0] for site, t in seen.items()})


def _score_edits(lens: Lens, base: Trace, layer: int, found: dict[str, Node], cut: bool) -> list[tuple[str, rec.Edit]]:
    """Make the scores of one layer nodes, and its pattern a function of them.

    They are computed here, since not every model computes on with what a hook at its scores returns.
    """
    heads = [head_scores(lens, base, layer, head) for head in range(lens.n_heads)]
    seen = base.layers[layer].pattern > 0
    stream: dict[str, Tensor] = {}

    def weigh(pattern: Tensor) -> Tensor:
        here = replace(base.layers[layer], x_pre=stream["x_pre"][0].to(seen.device, lens.compute_dtype))
        read = torch.stack([replace(head, layer=here).scores() for head in heads])[seen]
        values = read.detach().requires_grad_() if cut else read.clone()
        found[f"blocks.{layer}.attn.hook_attn_scores"] = Node(seen.nonzero(), values, read)
        masked = torch.full_like(base.layers[layer].pattern, -torch.inf)
        ours = torch.softmax(masked.masked_scatter(seen, heads[0].capped(values)), -1)[None].to(pattern)
        return pattern + (ours - ours.detach())  # models take a softmax in float32 at best: theirs stays

    hold = partial(stream.__setitem__, "x_pre")
    return [(f"blocks.{layer}.hook_resid_pre", hold), (f"blocks.{layer}.attn.hook_pattern", weigh)]
