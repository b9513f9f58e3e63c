"""Forward passes with patterns, norms or MLP outputs held at another run's values, checked to have been held."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pullback.lens import record as rec
from pullback.lens.structure import relative_error, tolerance
from pullback.lens.trace import Trace
from pullback.lens.weights import NO_NORM

if TYPE_CHECKING:
    from pullback.lens.adapter import Lens

FREEZES = ("all", "attention", None)


@dataclass(frozen=True)
class Freeze:
    """What of each layer is held: its attention pattern; or, in `whole` layers, norm scales and MLP output as well."""

    patterns: frozenset[int]
    whole: frozenset[int]
    final_norm: bool

    @staticmethod
    def of(n_layers: int, freeze: str | None, constrained: Iterable[int] = ()) -> Freeze:
        """`freeze`: "attention" holds patterns, "all" all of every layer, None nothing; `constrained` layers are held
        whole in any case. The last norm is held where every layer is.

        Raises ValueError for another word, or a layer that the model does not have.
        """
        if freeze not in FREEZES:
            raise ValueError(f"freeze must be 'all', 'attention' or None, got {freeze!r}")
        every = frozenset(range(n_layers))
        named = frozenset(constrained)
        if not named <= every:
            raise ValueError(
                f"constrained_layers must lie in 0..{n_layers - 1}, got layers {sorted(named - every)}: "
                f"range(n) constrains the first n layers"
            )
        whole = every if freeze == "all" else named
        return Freeze(patterns=whole if freeze is None else every, whole=whole, final_norm=whole == every)


def put(value: Tensor) -> rec.Edit:
    """Whatever stands at a site, this instead."""
    return lambda t: value.to(t).expand_as(t)


def freeze_edits(base: Trace, hold: Freeze) -> list[tuple[str, rec.Edit]]:
    """Edits that hold a forward pass at `base`."""
    edits: list[tuple[str, rec.Edit]] = []
    for i, layer in enumerate(base.layers):
        if i in hold.patterns:
            edits.append((f"blocks.{i}.attn.hook_pattern", put(layer.pattern)))
        if i in hold.whole:
            norms = layer.weights.norms()
            held = {name: scale for name, scale in layer.scales().items() if norms[name].kind != NO_NORM}
            edits += [(f"blocks.{i}.{name}.hook_scale", put(scale)) for name, scale in held.items()]
            edits.append((f"blocks.{i}.hook_mlp_out", put(layer.mlp_out)))
    if hold.final_norm and base.ln_final.kind != NO_NORM:
        edits.append(("ln_final.hook_scale", put(base.final_scale)))
    return edits


@torch.no_grad()
def frozen_run(
    lens: Lens,
    tokens: Tensor,
    base: Trace,
    freeze: Freeze | str | None,
    edits: list[tuple[str, rec.Edit]],
    sites: list[str],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run tokens (T,) under a freeze, with further edits after it; logits (T, V), and sites as they were before those
    edits: what a dictionary reads that writes at the same place.

    Raises ValueError where the model ran on with something else than what was held or written.
    """
    hold = freeze if isinstance(freeze, Freeze) else Freeze.of(lens.n_layers, freeze)
    probes = _probe_sites(lens, hold)
    frozen = [*lens.exact_edits, *freeze_edits(base, hold)]
    before: dict[str, Tensor] = {}
    watched = dict.fromkeys([*sites, *(f"blocks.{i}.hook_attn_out" for i in hold.whole)])
    watch: list[tuple[str, rec.Edit]] = [(site, partial(before.__setitem__, site)) for site in watched]
    logits, seen = rec.record(lens.model, tokens[None].to(lens.device), [*sites, *probes], [*frozen, *watch, *edits])
    earlier, at = ({site: t[0].to(lens.device, lens.compute_dtype) for site, t in of.items()} for of in (before, seen))
    _verify_held(lens, base, hold, earlier, at, logits[0])
    return logits[0], {s: before[s][0] for s in sites}


def must_hold(lens: Lens, base: Trace, freeze: str) -> None:
    """Raises ValueError for a model that runs on with its own patterns, norm scales or MLP outputs under a freeze.

    Seen on other tokens: on those of `base`, what is held is what the model computes anyway.
    """
    frozen_run(lens, (base.tokens + 1) % lens.d_vocab, base, freeze, [], [])


WRITES = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")


def _probe_sites(lens: Lens, hold: Freeze) -> list[str]:
    sites = []
    for i in range(lens.n_layers):
        sites += [f"blocks.{i}.{s}" for s in WRITES]
        sites += [f"blocks.{i}.attn.hook_v", f"blocks.{i}.attn.hook_z"] if i in hold.patterns else []
        sites += [lens.input_site(i, "mlp.hook_in")] if i in hold.whole else []
    return sites


def _verify_held(
    lens: Lens, base: Trace, hold: Freeze, before: dict[str, Tensor], at: dict[str, Tensor], logits: Tensor
) -> None:
    """Of tensors `at` sites, and of those that edits were made to, `before` them."""

    def must_equal(ours: Tensor, theirs: Tensor, what: str, floor: float = 1e-30) -> None:
        error = relative_error(ours, theirs.to(ours.dtype), floor)
        if not error <= tolerance(lens.dtype):
            raise ValueError(
                f"{lens.model_name}: {what} did not stay frozen (off by {error:.1e} of its largest value); hooks "
                "there do not change this model's computation, so this freeze cannot be had"
            )

    for i, layer in enumerate(base.layers):
        x_pre, attn_out, mlp_out, x_post = (at[f"blocks.{i}.{s}"] for s in WRITES)
        must_equal(x_pre + attn_out + mlp_out, x_post, f"what was written to the MLP output of layer {i}")
        if i not in hold.patterns:
            continue
        v, z = at[f"blocks.{i}.attn.hook_v"], at[f"blocks.{i}.attn.hook_z"]  # (T, heads, d_head)
        repeats = z.shape[1] // v.shape[1]
        held = torch.einsum("hts,she->the", layer.pattern, v.repeat_interleave(repeats, dim=1))
        must_equal(held, z, f"the attention pattern of layer {i}")
        if i not in hold.whole:
            continue
        w, floor = layer.weights, float(x_pre.abs().max()) / 100
        behind = "" if w.ln1_post.kind == NO_NORM else "ln1_post's or "
        attended = before[f"blocks.{i}.hook_attn_out"]
        must_equal(layer.attend(x_pre), attended, f"{behind}ln1's scale of layer {i}", floor)
        stream = x_pre if layer.parallel else x_pre + attn_out
        must_equal(w.ln2(stream, layer.ln2_scale), at[lens.input_site(i, "mlp.hook_in")], f"ln2's scale of layer {i}")
    if hold.final_norm:
        last = at[f"blocks.{lens.n_layers - 1}.hook_resid_post"]
        ours = base.ln_final(last, base.final_scale) @ base.W_U + base.b_U
        must_equal(lens.capped(ours), logits, "ln_final's scale")
