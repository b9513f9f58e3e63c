"""`attribute_through_model`: hierarchical attribution by backward passes through the model itself (Ge et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback.attribution.asked import Asked
from pullback.attribution.hierarchical.backward import Attributions, Backward
from pullback.attribution.hierarchical.gates import Gate, Thresholds
from pullback.attribution.hierarchical.live import LivePass, live_pass
from pullback.attribution.hierarchical.model_attribution import Edges, ModelAttribution
from pullback.attribution.hierarchical.scalars import ScalarOf, scalar_of
from pullback.attribution.settings import CHECK_TOLERANCE
from pullback.lens import Lens, as_lens, trace
from pullback.lens.tokens import Prompt
from pullback.transcoders import LayeredDictionary

METHODS = ("hierarchical", "standard", "direct")


def attribute_through_model(
    model: Any,
    prompt: Prompt,
    target: Asked | ScalarOf = None,
    *,
    transcoders: LayeredDictionary | None = None,
    attention_saes: LayeredDictionary | None = None,
    attention_scores: Iterable[int] = (),
    method: str = "hierarchical",
    tau: Thresholds = 0.1,
    mode: str = "signed",
    relative: bool = False,
    top: int | None = None,
    edges: bool = False,
    sites: Sequence[str] = (),
    strict: bool = True,
    verbose: bool = False,
) -> ModelAttribution:
    """What features, attention scores, errors, tokens and biases contribute to one number that the model computes.

    The model runs once with its dictionaries inserted (`inserted`), and gradients come back through it: attribution is
    value times gradient. On targets that `hierarchical` knows, and without scores, the result is the same, at the cost
    of a pass through the model instead of one over a graph; targets may be any function.

    Args:
        target: a token, `LogitDifference` or `FeatureTarget`, as `attribute` has them; or a function of the
            `LivePass`, such as `lambda run: run.logits[-1].log_softmax(-1)[7]`; None: the likeliest next token.
        transcoders, attention_saes: whose features are candidates, at any subset of the layers. The MLP of a layer
            without a transcoder is an error leaf; attention without an autoencoder is passed through.
        attention_scores: layers whose attention scores are candidates as well: their patterns then are no constants,
            and leaves do not sum to the target.
        method: "hierarchical" cuts every candidate that carries too little, as the gradient comes to it, and so all
            that goes through it; "standard" cuts nothing: total effects; "direct" detaches every candidate from those
            below.
        tau, mode, relative, top: of the gate, see `Gate`.
        edges: find the direct effects on the target and on each kept candidate too, a backward pass for each.
        sites: hooks whose activations a target function reads, as `run.at[site]`.
        strict: False accepts dictionaries of a fine-tuned sibling.
        verbose: show a progress bar over the passes for edges.

    Raises:
        ValueError: an unknown method or mode, a layer or a target that there is not, a target function that gives no
            scalar, dictionaries of another kind or model, a model in 16 bits, or one whose contributions do not add up.
    """
    if method not in METHODS:
        raise ValueError(f"through the model: method must be one of {', '.join(METHODS)}, got {method!r}")
    lens = as_lens(model)
    if lens.dtype not in CHECK_TOLERANCE:
        raise ValueError(f"through the model: gradients need float32 or float64, got {lens.dtype}; use hierarchical")
    for sets in (transcoders, attention_saes):
        if sets is not None:
            lens.check(sets, strict=strict)
    layers = sorted(set(attention_scores))
    if layers and not 0 <= layers[0] <= layers[-1] < lens.n_layers:
        raise ValueError(f"through the model: attention_scores names layers 0..{lens.n_layers - 1}, got {layers}")
    gate = Gate(tau, mode, relative, top)
    if method != "hierarchical" and gate != Gate():
        raise ValueError(
            f"through the model: tau, mode, relative and top say what is cut, and method={method!r} cuts nothing by "
            "size; leave them out"
        )
    base = trace(lens, lens.to_tokens(prompt))

    def run(*, cut: bool) -> LivePass:
        return live_pass(lens, base, transcoders, attention_saes, layers, sites, cut=cut)

    live = run(cut=method == "direct")
    backward, scalar = Backward(live), scalar_of(live, target)
    value, found = float(scalar.detach()), backward(scalar)
    if not (layers or callable(target)):  # these are linear in what is frozen, and a function need not be
        _must_add_up(lens, value, found, direct=method == "direct")
    if method == "hierarchical":
        found = backward(scalar, lambda site, attribution: gate.keeps(attribution, site, value))
    result = ModelAttribution.of(live, value, found)
    if not edges:
        return result
    between = live if method == "direct" else run(cut=True)
    return replace(result, edges=_edges(between, scalar_of(between, target), result.kept, verbose))


def _must_add_up(lens: Lens, value: float, found: Attributions, *, direct: bool) -> None:
    """What is not frozen or not linear shows in the sum."""
    parts = torch.cat([*found.ends(), *(found.nodes.values() if direct else ())])
    error = float((value - parts.sum()).abs() / parts.abs().sum().clamp(min=1))
    allowed = CHECK_TOLERANCE[lens.dtype]
    if not error <= allowed:
        raise ValueError(
            f"through the model: contributions miss the target by {error:.1e} of their size (allowed {allowed:.0e} in "
            f"{lens.dtype}); something in {lens.model_name} is not frozen or not linear"
        )


def _edges(live: LivePass, scalar: Tensor, kept: Tensor, verbose: bool) -> Edges:
    """Direct effects of kept nodes and leaves on the target (-1) and on each kept candidate, from a pass in which
    nodes are cut."""
    backward = Backward(live)
    reads = torch.cat([scalar.new_zeros(0), *(node.read for node in live.nodes.values())])
    into = [-1, *kept[: len(reads)].nonzero()[:, 0].tolist()]
    sources, targets, weights = [], [], []
    for t in tqdm(into, desc="edges", disable=not verbose):
        found = backward(scalar if t < 0 else reads[t])
        row = torch.cat([*found.nodes.values(), *found.leaves.values()])
        here = (kept & (row != 0)).nonzero()[:, 0]
        sources.append(here)
        targets.append(torch.full_like(here, t))
        weights.append(row[here])
    return Edges(torch.cat(sources), torch.cat(targets), torch.cat(weights))
