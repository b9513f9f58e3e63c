"""The model with some nodes kept and everything else ablated."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from pullback.attribution import FeatureTarget, Graph
from pullback.attribution.local import LocalModel, local_model
from pullback.causal.ablation import Ablation
from pullback.causal.margin import Margin
from pullback.causal.nodes import NodeSet
from pullback.lens import Lens, as_lens
from pullback.lens import record as rec
from pullback.lens.freeze import Freeze, frozen_run
from pullback.ops import SparseActivations
from pullback.transcoders import LayeredDictionary


class CircuitRunner:
    """Runs of one prompt in which the nodes outside of a circuit are ablated.

    Kept features and errors are what they are in the run itself. Of all others, features write nothing, whether they
    were active before or become so only now; in the place of those that are nodes stands what the ablation gives, and
    so for errors. Errors that are no nodes are kept.

    Args:
        nodes: the nodes that there are; `logits` keeps some of them.
        ablation: None for zero.
        freeze: "attention" holds patterns at the unchanged run's, None holds nothing.

    Raises:
        ValueError: nodes or an ablation that do not fit the prompt, transcoders of another model, another freeze.
    """

    def __init__(
        self,
        model: Any,
        sets: LayeredDictionary,
        prompt: Any,
        nodes: NodeSet,
        ablation: Ablation | None = None,
        *,
        freeze: str | None = "attention",
        strict: bool = True,
    ) -> None:
        lens = as_lens(model)
        if freeze == "all":
            raise ValueError("circuits: with everything frozen no node reads another; use freeze='attention' or None")
        self.lens, self.nodes = lens, nodes
        self.local = local_model(lens, sets, lens.to_tokens(prompt), strict=strict)
        nodes.must_fit(self.local)
        self.ablation = Ablation.zero(lens, self.local.sets) if ablation is None else ablation
        self.ablation.must_fit(self.local.n_pos)
        self.hold = Freeze.of(lens.n_layers, freeze)

    @staticmethod
    def of(model: Any, sets: LayeredDictionary, graph: Graph, **options: Any) -> CircuitRunner:
        """On the prompt and with the nodes of a graph."""
        return CircuitRunner(model, sets, graph.meta["tokens"], NodeSet.of(graph), **options)

    def logits(self, keep: Tensor) -> Tensor:
        """(T, V), with the nodes of a mask (n) of bool kept."""
        return self._run(keep)[0]

    def measured(self, measure: Margin | FeatureTarget, keep: Tensor) -> float:
        """A margin, or the pre-activation of a feature, with the nodes of a mask (n) of bool kept."""
        logits, read = self._run(keep)
        return float(measure(logits)) if isinstance(measure, Margin) else self._preactivation(measure, read)

    def unchanged(self, measure: Margin | FeatureTarget) -> float:
        """The same of the unchanged run. Raises ValueError for a feature that there is not."""
        if isinstance(measure, Margin):
            return float(measure(self.lens.capped(self.local.trace.logits)))
        read = {i: self.local.trace.layers[i].read(self.local.sets.hook_in(i)) for i in self.local.sets.layers}
        return self._preactivation(measure, read)

    def _run(self, keep: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Logits (T, V), and what each transcoder read, {layer: (T, d)}."""
        if keep.shape != (len(self.nodes),) or keep.dtype != torch.bool:
            raise ValueError(
                f"circuits: keep must be a mask [{len(self.nodes)}] of bool, got {keep.dtype} {list(keep.shape)}"
            )
        ablated = _Ablated(self.lens, self.local, self.nodes, keep, self.ablation)
        trace = self.local.trace
        return frozen_run(self.lens, trace.tokens, trace, self.hold, ablated.edits(), [])[0], ablated.read

    def _preactivation(self, feature: FeatureTarget, read: dict[int, Tensor]) -> float:
        position = feature.position + self.local.n_pos * (feature.position < 0)
        place = NodeSet(*(torch.tensor([n]) for n in (feature.layer, position, feature.feature)))
        place.must_fit(self.local)
        return float(self.local.sets[feature.layer].preactivations(read[feature.layer], place.pos, place.feature)[0])


class _Ablated:
    """Edits of one pass that take out what is not kept and put the ablation's values in."""

    def __init__(self, lens: Lens, local: LocalModel, nodes: NodeSet, keep: Tensor, ablation: Ablation) -> None:
        self.lens, self.local, self.sets = lens, local, local.sets
        self.ablation = ablation
        self.kept, self.out = nodes[keep], nodes[~keep]
        self.now: dict[int, SparseActivations] = {}
        self.read: dict[int, Tensor] = {}
        self.change: dict[int, list[SparseActivations]] = {}

    def edits(self) -> list[tuple[str, rec.Edit]]:
        edits: list[tuple[str, rec.Edit]] = []
        sites = self.lens.sites(self.sets, self.sets.layers)
        for layer in range(self.local.n_layers):
            site_in, site_out = sites.get(layer, (None, f"blocks.{layer}.hook_mlp_out"))
            if site_in is not None:
                edits.append((site_in, partial(self._encode, layer)))
            edits.append((site_out, partial(self._write, layer)))
        return edits

    def _encode(self, layer: int, x: Tensor) -> None:
        """What a layer's features give, and what of it goes: x (1, T, d)."""
        acts = self.sets.encode(layer, x[0])
        kept = self._features(self.kept, layer)
        keys = acts.rows() * acts.n_features + acts.indices
        stays = torch.isin(keys, kept[:, 0] * acts.n_features + kept[:, 1])
        self.read[layer], self.now[layer] = x[0], acts
        self.change[layer] = [self._given(layer), acts.where(~stays)]

    def _features(self, nodes: NodeSet, layer: int) -> Tensor:
        """(position, feature) of a layer's features, (n, 2), ascending."""
        here = (nodes.layer == layer) & ~nodes.is_error
        places = torch.stack([nodes.pos[here], nodes.feature[here]], 1)
        return places[torch.argsort(places[:, 0] * self.sets[layer].d_sae + places[:, 1])].to(self.lens.device)

    def _given(self, layer: int) -> SparseActivations:
        """What stands in for a layer's features that are ablated, T rows."""
        pos, ids = self._features(self.out, layer).T
        values = self.ablation.features(layer, pos, ids)
        counts = torch.bincount(pos, minlength=self.local.n_pos)
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        given = SparseActivations(indptr, ids.int(), values, self.sets[layer].d_sae)
        return given.where(values != 0)

    def _write(self, dst: int, y: Tensor) -> Tensor:
        """y (1, T, d), the MLP output of a layer."""
        change = torch.zeros_like(y[0], dtype=self.local.trace.embed.dtype)
        if dst in self.sets:
            given, gone = ({src: self.change[src][n] for src in self.sets.sources(dst)} for n in (0, 1))
            change += self.sets.decode(given, dst) - self.sets.decode(gone, dst)
        pos = self.out.pos[self.out.is_error & (self.out.layer == dst)].to(self.lens.device)
        explained = self.sets.reconstruct(dst, self.now, self.read[dst]) if dst in self.sets else 0
        error = y[0] - explained
        change[pos] += self.ablation.error(dst, pos) - error[pos].to(change)
        return y + change.to(y.dtype)
