"""From gradients of a live pass to attributions, `value * gradient`, with a gate at every node (METHODS 2.3, 2.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeAlias

import torch
from torch import Tensor

from pullback.attribution.hierarchical.live import LivePass
from pullback.lens.inserted import readings
from pullback.transcoders import LayeredDictionary

Keeps: TypeAlias = Callable[[str, Tensor], Tensor]
"""(site, attributions of its nodes) -> mask of the nodes that are kept"""
LeafName: TypeAlias = tuple[str, int]
"""Kind and layer; -1 for what the stream starts with."""


@dataclass(frozen=True, eq=False)
class Attributions:
    """What everything contributes to one target.

    Attributes:
        nodes: {site: (n)}, 0 where a gate cut them.
        own: {site of features: (n)}, what the biases of each feature contribute through it.
        leaves: {(kind, layer): (T)}: embeddings, positions, errors, biases of MLPs and attention.
        rest: the biases of the target itself: b_U and the last norm's.
    """

    nodes: dict[str, Tensor]
    own: dict[str, Tensor]
    leaves: dict[LeafName, Tensor]
    rest: Tensor

    def ends(self) -> list[Tensor]:
        """What the target is made of in the end: biases and leaves."""
        return [*self.own.values(), *self.leaves.values(), self.rest[None]]


def _all(_site: str, attribution: Tensor) -> Tensor:
    return torch.ones_like(attribution, dtype=torch.bool)


@contextmanager
def _gates(live: LivePass, keeps: Keeps) -> Iterator[None]:
    """Inside, gradients that come to a node are gated. Autograd comes to a node from above, when it has all of them."""

    def gate(site: str, values: Tensor, gradient: Tensor) -> Tensor:
        return torch.where(keeps(site, values * gradient), gradient, 0)

    nodes = live.nodes.items()
    handles = [node.values.register_hook(partial(gate, site, node.values.detach())) for site, node in nodes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Backward:
    """Backward passes from targets through one live pass."""

    def __init__(self, live: LivePass) -> None:
        self.live = live
        run = live.inserted
        self.transcoders = _by_site(live, run.transcoders)
        self.saes = _by_site(live, run.attention_saes)
        self.wanted = {("values", site): node.values for site, node in live.nodes.items()}
        self.wanted |= {("read", site): f.read for site, f in live.features.items()}
        self.wanted |= {("leaf", site): leaf for site, leaf in run.leaves.items()}
        self.wanted |= {("attention", f"{i}"): written for i, written in run.attention.items()}
        self.wanted |= {("logits", ""): live.logits}

    def __call__(self, target: Tensor, keeps: Keeps = _all) -> Attributions:
        """Attributions to a scalar of the pass."""
        live = self.live
        with _gates(live, keeps):
            gradients = torch.autograd.grad(
                target, list(self.wanted.values()), retain_graph=True, allow_unused=True, materialize_grads=True
            )
        at = dict(zip(self.wanted, gradients, strict=True))
        own = {site: at["read", site] * constant for site, constant in self._own.items()}
        nodes: dict[str, Tensor] = {}
        for site, node in live.nodes.items():
            attribution = at["values", site] * node.values.detach()  # as it came to the gate, which passed on less
            nodes[site] = torch.where(keeps(site, attribution), attribution, 0)
        return Attributions(nodes, own, self._leaves(at), (at["logits", ""] * self._logit_constants).sum())

    # ---- what does not depend on the target -----------------------------------------------------------------------

    @cached_property
    def _own(self) -> dict[str, Tensor]:
        """What features read of a stream of zeros: their bias, and the constants before them."""
        found: dict[str, Tensor] = {}
        layers = self.live.trace.layers
        for site, (i, sets) in self.transcoders.items():
            constant = layers[i].read_bias(sets.hook_in(i)).expand_as(layers[i].x_pre)
            found[site] = readings(sets, i, self.live.features[site].acts, constant)
        for site, (i, sets) in self.saes.items():
            found[site] = readings(sets, i, self.live.features[site].acts, layers[i].attn_constant)
        return found

    @cached_property
    def _biases(self) -> dict[LeafName, tuple[tuple[str, str], Tensor]]:
        """{leaf: (where its gradient is, what is written there whatever the stream holds (T, d))}"""
        found: dict[LeafName, tuple[tuple[str, str], Tensor]] = {}
        for i, layer in enumerate(self.live.trace.layers):
            found["attn_bias", i] = ("attention", f"{i}"), layer.attn_constant
        for site, (i, sets) in self.saes.items():
            found["attn_bias", i] = ("leaf", site), sets.b_dec(i)
        for site, (i, sets) in self.transcoders.items():
            W_skip, read_bias = sets.skip(i), self.live.trace.layers[i].read_bias(sets.hook_in(i))
            found["mlp_bias", i] = ("leaf", site), sets.b_dec(i) + (0 if W_skip is None else read_bias @ W_skip.T)
        return found

    @cached_property
    def _logit_constants(self) -> Tensor:
        """Logits (V) of a stream of zeros, with the last norm's bias."""
        t = self.live.trace
        return t.b_U + t.ln_final.bias_vector(t.embed[0]) @ t.W_U

    @cached_property
    def _leaf_names(self) -> dict[str, LeafName]:
        """What the leaf at each site is."""
        names: dict[str, LeafName] = {"hook_embed": ("embedding", -1), "hook_pos_embed": ("position", -1)}
        for site in self.live.inserted.leaves.keys() - names:
            names[site] = "attention_error" if site in self.saes else "error", int(site.split(".")[1])
        return names

    def _leaves(self, at: dict[tuple[str, str], Tensor]) -> dict[LeafName, Tensor]:
        t = self.live.trace

        def per_position(gradient: Tensor, value: Tensor) -> Tensor:
            product = gradient.to(t.embed) * value.to(t.embed)
            return product.reshape(t.n_pos, -1).sum(1)

        leaves = self.live.inserted.leaves.items()
        found = {self._leaf_names[site]: per_position(at["leaf", site], value.detach()) for site, value in leaves}
        return found | {name: per_position(at[where], constant) for name, (where, constant) in self._biases.items()}


def _by_site(live: LivePass, sets: LayeredDictionary | None) -> dict[str, tuple[int, LayeredDictionary]]:
    """Layers of a set by the site that they write to."""
    if sets is None:
        return {}
    return {site: (layer, sets) for layer, (_, site) in live.lens.sites(sets, sets.layers).items()}
