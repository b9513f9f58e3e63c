"""The model with some nodes kept and everything else ablated."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pullback.attribution import FeatureTarget, Graph
from pullback.attribution.local import local_model
from pullback.causal.ablation import Ablation
from pullback.causal.margin import Margin
from pullback.causal.nodes import NodeSet
from pullback.lens import Lens, Trace, as_lens
from pullback.lens import record as rec
from pullback.lens.freeze import Freeze, frozen_run
from pullback.ops import SparseActivations
from pullback.transcoders import LayeredDictionary

Read: TypeAlias = tuple[dict[int, Tensor], dict[int, Tensor]]
"""What dictionaries of MLPs read, and those of attention outputs, {layer: (T, d)} each."""


class CircuitRunner:
    """Runs of one prompt in which the nodes outside of a circuit are ablated.

    Kept features and errors are what they are in the run itself. Of all others, features write nothing, whether they
    were active before or become so only now; in the place of those that are nodes stands what the ablation gives, and
    so for errors. Errors that are no nodes are kept.

    Args:
        nodes: the nodes that there are; `logits` keeps some of them.
        ablation: None for zero.
        freeze: "attention" holds patterns at the unchanged run's, None holds nothing.
        attention_saes: where nodes are of attention outputs, their autoencoders.

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
        attention_saes: LayeredDictionary | None = None,
        strict: bool = True,
    ) -> None:
        lens = as_lens(model)
        if freeze == "all":
            raise ValueError("circuits: with everything frozen no node reads another; use freeze='attention' or None")
        self.lens, self.nodes = lens, nodes
        self.local = local_model(lens, sets, lens.to_tokens(prompt), strict=strict, attention_saes=attention_saes)
        nodes.must_fit(self.local.dictionaries, self.local.trace)
        if ablation is None:
            ablation = Ablation.zero(lens, self.local.sets, attention_saes=self.local.attention.saes)
        self.ablation = ablation
        self.ablation.must_fit(self.local.n_pos)
        self.ablation.of(attention=self.local.attention.saes is not None)
        self.hold = Freeze.of(lens.n_layers, freeze)

    @staticmethod
    def of(model: Any, sets: LayeredDictionary, graph: Graph, **options: Any) -> CircuitRunner:
        """On the prompt and with the nodes of a graph."""
        return CircuitRunner(model, sets, graph.prompt_tokens(), NodeSet.of(graph), **options)

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
        layers = self.local.trace.layers
        at_mlps = {i: layers[i].read(self.local.sets.hook_in(i)) for i in self.local.sets.layers}
        return self._preactivation(measure, (at_mlps, {i: layers[i].attn_out for i in self.local.attention.acts}))

    def _run(self, keep: Tensor) -> tuple[Tensor, Read]:
        """Logits (T, V), and what each dictionary read."""
        if keep.shape != (len(self.nodes),) or keep.dtype != torch.bool:
            raise ValueError(
                f"circuits: keep must be a mask [{len(self.nodes)}] of bool, got {keep.dtype} {list(keep.shape)}"
            )
        lens, trace, nodes = self.lens, self.local.trace, self.nodes
        kept, out = nodes[keep], nodes[~keep]

        def ablated(*, attention: bool) -> _Ablated:
            own, gone = (part[part.attention == attention] for part in (kept, out))
            sets, ablation = self.local.dictionaries[attention], self.ablation.of(attention=attention)
            return _Ablated(lens, sets, own, gone, ablation, trace)

        at_mlps = ablated(attention=False)
        edits, read = at_mlps.edits(range(lens.n_layers)), (at_mlps.read, dict[int, Tensor]())
        if len(self.local.dictionaries) > 1:
            at_attention = ablated(attention=True)
            edits, read = [*edits, *at_attention.edits()], (at_mlps.read, at_attention.read)
        return frozen_run(lens, trace.tokens, trace, self.hold, edits, [])[0], read

    def _preactivation(self, feature: FeatureTarget, read: Read) -> float:
        position = feature.position + self.local.n_pos * (feature.position < 0)
        numbers = (feature.layer, position, feature.feature, feature.attention)
        place = NodeSet(*(torch.tensor([n]) for n in numbers))
        place.must_fit(self.local.dictionaries, self.local.trace)
        sets, x = self.local.dictionaries[feature.attention], read[feature.attention][feature.layer]
        return float(sets[feature.layer].preactivations(x, place.pos, place.feature)[0])


class _Ablated:
    """Edits of one pass that take out what is not kept and put the ablation's values in, where one kind of dictionaries
    reads and writes."""

    def __init__(
        self, lens: Lens, sets: LayeredDictionary, kept: NodeSet, out: NodeSet, ablation: Ablation, trace: Trace
    ) -> None:
        self.lens, self.sets, self.kept, self.out, self.ablation = lens, sets, kept, out, ablation
        self.n_pos, self.dtype = trace.n_pos, trace.embed.dtype
        self.now: dict[int, SparseActivations] = {}
        self.read: dict[int, Tensor] = {}
        self.change: dict[int, list[SparseActivations]] = {}

    def edits(self, mlps: Iterable[int] = ()) -> list[tuple[str, rec.Edit]]:
        """Also at MLPs that no dictionary reads: all that they write is error."""
        edits: list[tuple[str, rec.Edit]] = []
        sites = self.lens.sites(self.sets, self.sets.layers)
        for layer in sorted({*self.sets.layers, *mlps}):
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
        counts = torch.bincount(pos, minlength=self.n_pos)
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        given = SparseActivations(indptr, ids.int(), values, self.sets[layer].d_sae)
        return given.where(values != 0)

    def _write(self, dst: int, y: Tensor) -> Tensor:
        """y (1, T, d), the output of a layer."""
        change = torch.zeros_like(y[0], dtype=self.dtype)
        if dst in self.sets:
            given, gone = ({src: self.change[src][n] for src in self.sets.sources(dst)} for n in (0, 1))
            change += self.sets.decode(given, dst) - self.sets.decode(gone, dst)
        pos = self.out.pos[self.out.is_error & (self.out.layer == dst)].to(self.lens.device)
        explained = self.sets.reconstruct(dst, self.now, self.read[dst]) if dst in self.sets else 0
        error = y[0] - explained
        change[pos] += self.ablation.error(dst, pos) - error[pos].to(change)
        return y + change.to(y.dtype)
