"""`attribute`: one prompt to one graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback.attribution.assemble import assemble
from pullback.attribution.autograd import AutogradEngine
from pullback.attribution.graph import Graph
from pullback.attribution.linear import bytes_per_target, linear_rows
from pullback.attribution.local import LocalModel, local_model
from pullback.attribution.offload import out_of_memory
from pullback.attribution.rows import EdgeRows
from pullback.attribution.targets import LogitTargets, Targets, feature_batch, logit_batch, salient_logits
from pullback.lens import Lens, as_lens, offloaded
from pullback.transcoders import LayeredDictionary

WORKING_MEMORY = 2 * 2**30
ENGINES = ("linear", "autograd")
CHECK_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def attribute(
    model: Any,
    sets: LayeredDictionary,
    prompt: str | Sequence[int] | Tensor,
    *,
    attribution_targets: int | str | Sequence[int | str] | Tensor | None = None,
    max_n_logits: int = 10,
    desired_logit_prob: float = 0.95,
    batch_size: int = 512,
    max_feature_nodes: int | None = None,
    update_interval: int = 4,
    zero_positions: slice | None = None,
    offload: str | None = None,
    engine: str = "linear",
    precision: str | None = None,
    strict: bool = True,
    verbose: bool = False,
) -> Graph:
    """Attribution graph of the model's next-token answer to one prompt (argument names are circuit-tracer's).

    Method: Ameisen et al. 2025, "Circuit Tracing", with every leaf kept, so that rows sum (O1).

    Args:
        model: a TransformerLens model, or a `Lens` on one.
        sets: transcoders, per-layer or cross-layer, for any subset of its layers; a layer without one is an error node
            at every position.
        prompt: a string (BOS by the model's default) or token ids (T,), taken as given.
        attribution_targets: different token ids or one-token strings to explain, or just one; None: the likely ones.
        max_n_logits, desired_logit_prob: at most so many logits, as few as reach that probability.
        batch_size: targets pulled back together at most; fewer where the prompt is so long that they would take more
            than 2 GiB of working memory.
        max_feature_nodes: keep so many features, chosen by influence; None: all active ones.
        update_interval: batches between two rankings by influence, where features are chosen.
        zero_positions: positions whose features and errors are left out (`slice(0, 1)` is circuit-tracer's BOS rule).
        offload: once the prompt has been read, the model gives way to the graph, and comes back afterwards: "cpu" takes
            it from its device, "disk" puts it, and on a CPU what is frozen of the prompt too, into temporary files, of
            which a layer at a time is read. The forward pass takes what it takes.
        engine: "linear", or "autograd", its oracle: the same edges through the model and torch autograd, slower.
        precision: "bfloat16": the linear engine multiplies gradients in bfloat16 and sums in float32: faster where the
            processor does so, and the graph misses its sums by some 1e-2. None for the precision of the model, float32
            at least.
        strict: False accepts transcoders of a fine-tuned sibling.
        verbose: print a memory estimate and show a progress bar.

    Returns:
        A graph whose every target sums: pre-activation = edges + dropped mass (`graph.check()`).

    Raises:
        ValueError: a prompt the model cannot read, transcoders of another model, autoencoders, NaN activations, or a
            model whose frozen map does not add up to its own activations.
    """
    if engine not in ENGINES:
        raise ValueError(f"attribute: engine must be one of {', '.join(ENGINES)}, got '{engine}'")
    if batch_size < 1 or update_interval < 1 or (max_feature_nodes is not None and max_feature_nodes < 0):
        raise ValueError("attribute: batch_size and update_interval must be at least 1, max_feature_nodes at least 0")
    if offload is not None and engine == "autograd":
        raise ValueError("attribute: engine 'autograd' runs the model all the time; offload is for engine 'linear'")
    lens = as_lens(model)
    products = _products(lens, precision, engine)
    if engine == "autograd" and lens.dtype not in CHECK_TOLERANCE:
        raise ValueError(f"attribute: engine 'autograd' runs in float32 and float64, not in {lens.dtype}; use 'linear'")
    tokens = lens.to_tokens(prompt)
    with torch.no_grad():
        local = local_model(lens, sets, tokens, zero_positions=zero_positions, strict=strict, precision=products)
        logits = salient_logits(lens, local, max_n_logits, desired_logit_prob, attribution_targets)
        if verbose:
            from pullback.attribution.memory import estimated

            tqdm.write(str(estimated(lens, local, batch_size, max_feature_nodes)))
        with offloaded(lens.model, offload):
            local = local if offload is None else out_of_memory(local)
            rows = _Rows(lens, local, logits, engine, batch_size, verbose)
            chosen = (
                rows.all_features()
                if max_feature_nodes is None
                else rows.by_influence(max_feature_nodes, update_interval)
            )
        settings = {
            "max_n_logits": max_n_logits,
            "desired_logit_prob": desired_logit_prob,
            "batch_size": batch_size,
            "max_feature_nodes": max_feature_nodes,
            "precision": str(products).removeprefix("torch."),
        }
        meta = _meta(lens, local, sets, prompt, logits) | {"generation_settings": settings}
        graph = assemble(local, logits, rows.edges, chosen, meta)
    _must_add_up(graph, lens, products)
    return graph


def _products(lens: Lens, precision: str | None, engine: str) -> torch.dtype:
    """The dtype that gradients are multiplied in."""
    if precision is None:
        return lens.compute_dtype
    if precision != "bfloat16":
        raise ValueError(f"attribute: precision must be None or 'bfloat16', got {precision!r}")
    if engine == "autograd" or lens.compute_dtype == torch.float64:
        raise ValueError(
            "attribute: precision='bfloat16' is for the linear engine and models in at most float32; leave it out here"
        )
    return torch.bfloat16


def targets_at_once(local: LocalModel, batch_size: int) -> int:
    """As many as were asked for, fewer where they would take more than `WORKING_MEMORY`."""
    return max(1, min(batch_size, WORKING_MEMORY // bytes_per_target(local)))


class _Rows:
    """Edges of targets, computed in batches and kept sparse."""

    def __init__(
        self, lens: Lens, local: LocalModel, logits: LogitTargets, engine: str, batch_size: int, verbose: bool
    ) -> None:
        self.local, self.logits, self.verbose = local, logits, verbose
        self.batch_size = targets_at_once(local, batch_size)
        self.engine = AutogradEngine(lens, local) if engine == "autograd" else None
        self.edges = EdgeRows(local.layout)
        self._add(-1 - torch.arange(len(logits.labels)), logit_batch(local, logits), logits.tokens)

    @property
    def n_features(self) -> int:
        return self.local.layout.all_features.stop - self.local.layout.all_features.start

    def _add(self, names: Tensor, targets: Targets, logit_tokens: Tensor | None = None) -> None:
        if self.engine is None:
            block, zeroed = linear_rows(self.local, targets)
        else:
            block, zeroed = self.engine.rows(targets, logit_tokens)
        self.edges.append(names, targets.layer, targets.own, block, zeroed)

    def _add_features(self, chosen: Tensor, bar: Any) -> None:
        """Targets sorted by layer and position share their sweep and its causal cone: that is layout order."""
        chosen = chosen.sort().values
        for start in range(0, len(chosen), self.batch_size):
            batch = chosen[start : start + self.batch_size]
            self._add(batch, feature_batch(self.local, batch))
            bar.update(len(batch))

    def all_features(self) -> Tensor:
        chosen = torch.arange(self.n_features)
        with tqdm(total=len(chosen), desc="attribution", unit="feature", disable=not self.verbose) as bar:
            self._add_features(chosen, bar)
        return chosen

    def by_influence(self, limit: int, update_interval: int) -> Tensor:
        """The `limit` features of largest influence through the rows so far, ranked again every few batches."""
        done = torch.zeros(self.n_features, dtype=torch.bool)
        limit = min(limit, self.n_features)
        with tqdm(total=limit, desc="attribution", unit="feature", disable=not self.verbose) as bar:
            while int(done.sum()) < limit:
                rank = self.edges.influence(self.logits)
                rank[done] = -1
                step = min(limit - int(done.sum()), update_interval * self.batch_size)
                nxt = torch.argsort(rank, descending=True, stable=True)[:step]
                self._add_features(nxt, bar)
                done[nxt] = True
        return done.nonzero()[:, 0]


def _meta(lens: Lens, local: LocalModel, sets: LayeredDictionary, prompt: Any, logits: LogitTargets) -> dict[str, Any]:
    str_tokens = local.trace.str_tokens
    return {
        "prompt": prompt if isinstance(prompt, str) else "".join(str_tokens),
        "tokens": [int(t) for t in local.trace.tokens],
        "str_tokens": str_tokens,
        "model_name": lens.model_name,
        "n_layers": lens.n_layers,
        "logit_labels": logits.labels,
        "hook_in": sets.hook_in(sets.layers[0]),
        "dtype": str(lens.dtype).removeprefix("torch."),
    }


def _must_add_up(graph: Graph, lens: Lens, products: torch.dtype) -> None:
    """A freeze that silently does not hold gives a graph that looks reasonable: the sums tell."""
    error = graph.check()
    allowed = max(CHECK_TOLERANCE.get(dtype, 5e-2) for dtype in (lens.dtype, products))
    if not error <= allowed:
        raise ValueError(
            f"attribute: the edges of a target miss its pre-activation by {error:.1e} of their size "
            f"(allowed {allowed:.0e} in {lens.dtype}); something in {lens.model_name} is not frozen "
            "or not linear, so this graph would be wrong"
        )
