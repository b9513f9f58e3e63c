"""The model as heads and MLPs: which of them write, which inputs read them, and what is between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.lens import Lens, Norm
from pullback.lens.weights import NO_NORM

READS = ("q", "k", "v")


class Input(NamedTuple):
    """What reads the residual stream: one input of one head (k and v: of one key/value head), an MLP, or the logits."""

    layer: int
    kind: str  # "q", "k", "v", "m" or "logits"
    head: int

    @property
    def name(self) -> str:
        own = {"m": f"m{self.layer}", "logits": "logits"}
        return own.get(self.kind, f"a{self.layer}.h{self.head}<{self.kind}>")


class Components:
    """Sources in the order in which they write: input, then of each layer its heads and its MLP; targets, each of which
    reads all sources up to a certain one."""

    def __init__(self, lens: Lens) -> None:
        self.lens, self.L, self.H = lens, lens.n_layers, lens.n_heads
        self.sources = ["input"]
        self.targets: list[Input] = []
        for i in range(self.L):
            self.sources += [*(f"a{i}.h{h}" for h in range(self.H)), f"m{i}"]
            heads = {"q": self.H, "k": lens.n_kv_heads, "v": lens.n_kv_heads}
            self.targets += [Input(i, kind, h) for kind in READS for h in range(heads[kind])]
            self.targets.append(Input(i, "m", 0))
        self.targets.append(Input(self.L, "logits", 0))

    def n_read(self, target: Input) -> int:
        """How many sources a target reads."""
        before = 1 + target.layer * (self.H + 1)
        return before + (self.H if target.kind == "m" and not self.lens.parallel else 0)

    def edges(self) -> list[tuple[str, str]]:
        return [(source, t.name) for t in self.targets for source in self.sources[: self.n_read(t)]]

    def site(self, target: Input) -> str:
        """Where what a target computes first can be changed."""
        if target.kind == "m":
            return self.lens.input_site(target.layer, "mlp.hook_in")
        return f"blocks.{target.layer}.attn.hook_{target.kind}"

    def projection(self, target: Input) -> Tensor:
        """Of a head's input, (d, d_head)."""
        attn = self.lens.model.blocks[target.layer].attn
        weight = getattr(attn, f"_W_{target.kind.upper()}", getattr(attn, f"W_{target.kind.upper()}"))
        return weight.detach()[target.head]

    def norm(self, target: Input) -> Norm:
        if target.kind == "logits":
            return self.lens.ln_final
        weights = self.lens.layer_weights(target.layer)
        return weights.ln2 if target.kind == "m" else weights.ln1

    def record_sites(self) -> list[str]:
        per_block = ("hook_resid_pre", "attn.hook_z", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
        sites = [f"blocks.{i}.{s}" for i in range(self.L) for s in per_block]
        for i in range(self.L):
            norms = self.lens.layer_norms(i).by_module()
            sites += [f"blocks.{i}.{name}.hook_scale" for name, norm in norms.items() if norm.kind != NO_NORM]
        return sites + (["ln_final.hook_scale"] if self.lens.ln_final.kind != NO_NORM else [])


@dataclass(frozen=True)
class Seen:
    """A pass over tokens (N, T), as components see it."""

    parts: Components
    at: dict[str, Tensor]

    def outputs(self) -> Tensor:
        """What every source writes, (n_sources, N, T, d); of attention without its bias, and over the denominator of a
        norm behind it."""
        rows = [self.at["blocks.0.hook_resid_pre"]]
        for i in range(self.parts.L):
            z, w = self.at[f"blocks.{i}.attn.hook_z"], self.parts.lens.layer_weights(i)
            heads = [z[..., h, :] @ w.W_O[h] for h in range(self.parts.H)]
            behind = self.at.get(f"blocks.{i}.ln1_post.hook_scale")
            rows += heads if behind is None else [head / behind for head in heads]
            rows.append(self.at[f"blocks.{i}.hook_mlp_out"])
        return torch.stack(rows)

    def stream(self, target: Input) -> Tensor:
        """The residual stream that a target reads, (N, T, d)."""
        if target.kind == "logits":
            return self.at[f"blocks.{self.parts.L - 1}.hook_resid_post"]
        x = self.at[f"blocks.{target.layer}.hook_resid_pre"]
        moved = target.kind == "m" and not self.parts.lens.parallel
        return x + self.at[f"blocks.{target.layer}.hook_attn_out"] if moved else x

    def scale(self, target: Input) -> Tensor:
        """The denominator of the norm in front of a target, (N, T, 1)."""
        if target.kind == "logits":
            return self.at["ln_final.hook_scale"]
        name = self.parts.lens.layer_norms(target.layer).ln2_at if target.kind == "m" else "ln1"
        return self.at[f"blocks.{target.layer}.{name}.hook_scale"]

    def behind(self, target: Input) -> Tensor:
        """What a target reads behind its norm, (N, T, d)."""
        norm, x = self.parts.norm(target), self.stream(target)
        return x if norm.kind == NO_NORM else norm(x, self.scale(target))

    def pullback(self, target: Input, g: Tensor) -> Tensor:
        """The gradient (N, T, d) behind the norm of a target as one at its stream; the denominator moves, too."""
        norm = self.parts.norm(target)
        if norm.kind == NO_NORM:
            return g
        g = g if norm.w is None else g * norm.w
        normalized = norm.normalized(self.stream(target), self.scale(target))
        return norm.centre((g - normalized * (g * normalized).mean(-1, keepdim=True)) / self.scale(target))

    def change_behind(self, target: Input, change: Tensor) -> Tensor:
        """What changes behind the norm of a target where its stream changes by `change` (..., N, T, d)."""
        norm, x = self.parts.norm(target), self.stream(target)
        if norm.kind == NO_NORM:
            return change
        scale = self.scale(target)
        eps = scale.square() - norm.centre(x).square().mean(-1, keepdim=True)
        moved = norm.centre(x + change)
        return norm.affine(moved / (moved.square().mean(-1, keepdim=True) + eps).sqrt()) - norm(x, scale)
