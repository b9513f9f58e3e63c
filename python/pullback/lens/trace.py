"""One forward pass, frozen: everything the linear map between features is made of, verified against the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pullback.lens.depth import at_mlp, block_of
from pullback.lens.structure import must_be_finite, tolerance
from pullback.lens.tokens import check_ids
from pullback.lens.weights import NO_NORM, LayerWeights, Norm

if TYPE_CHECKING:
    from pullback.lens.adapter import Lens


@dataclass(frozen=True)
class LayerTrace:
    """What one block did on one prompt of T tokens; on several of one length, with a dimension of prompts in front."""

    weights: LayerWeights
    parallel: bool
    x_pre: Tensor  # (T, d)
    ln1_scale: Tensor  # (T, 1)
    pattern: Tensor  # (n_heads, T_dst, T_src)
    ln1_post_scale: Tensor  # (T, 1), of a norm behind attention
    attn_out: Tensor  # (T, d), behind that norm
    ln2_scale: Tensor  # (T, 1)
    mlp_out: Tensor  # (T, d), behind a norm behind the MLP

    def scales(self) -> dict[str, Tensor]:
        """Frozen denominators by the names of their modules, as `LayerWeights.norms`."""
        return {"ln1": self.ln1_scale, "ln1_post": self.ln1_post_scale, self.weights.ln2_at: self.ln2_scale}

    @staticmethod
    def stacked(prompts: Sequence[LayerTrace]) -> LayerTrace:
        """The same block on several prompts of one length; of one prompt, a view."""
        recorded = {f: [getattr(one, f) for one in prompts] for f in RECORDED}
        return replace(prompts[0], **{f: v[0][None] if len(v) == 1 else torch.stack(v) for f, v in recorded.items()})

    def of_prompt(self, q: int) -> LayerTrace:
        return replace(self, **{f: getattr(self, f)[q] for f in RECORDED})

    @cached_property
    def mixing(self) -> Tensor:
        """How values become what attention writes, (n_heads, T_dst, T_src): the pattern, over the frozen denominators
        of a norm behind attention where there is one."""
        if self.weights.ln1_post.kind == NO_NORM:
            return self.pattern
        return self.pattern / self.ln1_post_scale[..., None, :, :]

    @property
    def attn_constant(self) -> Tensor:
        """What attention writes whatever the stream holds, (T, d): b_O; b_V and ln1's bias through the pattern."""
        w = self.weights
        constant = w.constant_values()[:, None, :].expand(-1, self.x_pre.shape[-2], -1)
        return w.attend(self.mixing, constant) + self.attn_bias

    @property
    def attn_bias(self) -> Tensor:
        """b_O, and the bias of a norm behind attention, (T, d)."""
        w = self.weights
        return w.b_O / self.ln1_post_scale + w.ln1_post.bias_vector(w.b_O)

    def attend(self, x_pre: Tensor) -> Tensor:
        """What attention writes if the stream is x_pre (T, d), patterns and norms frozen, (T, d)."""
        w = self.weights
        return w.attend(self.mixing, w.values(w.ln1(x_pre, self.ln1_scale))) + self.attn_bias

    @property
    def mlp_stream(self) -> Tensor:
        """The residual stream that the MLP reads, (T, d): x_mid, or x_pre in a parallel block."""
        return self.x_pre if self.parallel else self.x_pre + self.attn_out

    def read(self, hook_in: str) -> Tensor:
        """The value at a transcoder's input site, (T, d)."""
        if hook_in == "hook_resid_mid":
            return self.mlp_stream
        normalized = self.weights.ln2.normalized(self.mlp_stream, self.ln2_scale)
        return normalized if hook_in == "ln2.hook_normalized" else self.weights.ln2.affine(normalized)

    def read_pullback(self, hook_in: str, v: Tensor, positions: Tensor) -> Tensor:
        """Vectors v (B, d) read at the site, at positions (B), as vectors read at the stream, (B, d)."""
        return self.read_direction(hook_in, v) * self.read_factor(hook_in, positions)[:, None]

    def read_direction(self, hook_in: str, v: Tensor) -> Tensor:
        """The same but for what depends on the position, which is `read_factor`."""
        if hook_in == "hook_resid_mid":
            return v
        return self.weights.ln2.pullback(v, v.new_ones(1), affine=hook_in != "ln2.hook_normalized")

    def read_factor(self, hook_in: str, positions: Tensor) -> Tensor:
        """(B), one over the norm's denominators."""
        scale = self.ln2_scale[positions, 0]
        return torch.ones_like(scale) if hook_in == "hook_resid_mid" else 1 / scale

    def read_linear(self, hook_in: str, x: Tensor, positions: Tensor) -> Tensor:
        """What vectors x (B, d) of the stream, at positions (B), add to the value at the site, (B, d)."""
        if hook_in == "hook_resid_mid":
            return x
        ln2 = self.weights.ln2
        return (ln2.centre(x) if hook_in == "ln2.hook_normalized" else ln2.linear(x)) / self.ln2_scale[positions]

    def read_bias(self, hook_in: str) -> Tensor:
        """The constant in the value at the site, (d): the norm's bias where the site lies behind the affine."""
        if hook_in in ("hook_resid_mid", "ln2.hook_normalized"):
            return self.x_pre.new_zeros(self.x_pre.shape[-1])
        return self.weights.ln2.bias_vector(self.x_pre.new_zeros(self.x_pre.shape[-1]))


RECORDED = [field.name for field in fields(LayerTrace) if field.name not in ("weights", "parallel")]


@dataclass(frozen=True)
class Trace:
    """A frozen prompt. `logits` are before any soft cap, for every position. All in `lens.compute_dtype`."""

    model_name: str
    tokens: Tensor  # (T)
    str_tokens: list[str]
    embed: Tensor  # (T, d)
    pos_embed: Tensor | None  # (T, d), None where positions enter through attention
    layers: list[LayerTrace]
    ln_final: Norm
    final_scale: Tensor  # (T, 1)
    logits: Tensor  # (T, V)
    W_U: Tensor  # (d, V)
    b_U: Tensor  # (V)

    @property
    def n_pos(self) -> int:
        return self.tokens.shape[0]

    def stream(self, depth: int) -> Tensor:
        """The residual stream as it is read at a depth, (T, d), see `lens.depth`."""
        layer = block_of(depth)
        if layer == len(self.layers):
            last = self.layers[-1]
            return last.x_pre + last.attn_out + last.mlp_out
        return self.layers[layer].mlp_stream if depth == at_mlp(layer) else self.layers[layer].x_pre


def _without_subnormals(pattern: Tensor) -> Tensor:
    """With 0 for numbers so small that a processor takes a hundred times as long to multiply them: of a long prompt's
    pattern they may be a few in a hundred. They are below what any edge is known to."""
    return torch.nn.functional.hardshrink(pattern, torch.finfo(pattern.dtype).tiny)


def _sites(lens: Lens) -> list[str]:
    names = ["hook_embed"] + (["hook_pos_embed"] if lens.positional == "learned" else [])
    for i in range(lens.n_layers):
        norms = lens.layer_norms(i).by_module()
        names += [f"blocks.{i}.{s}" for s in ("hook_resid_pre", "attn.hook_pattern", "hook_attn_out", "hook_mlp_out")]
        names += [f"blocks.{i}.{n}.hook_scale" for n, norm in norms.items() if norm.kind != NO_NORM]
        names += [f"blocks.{i}.hook_resid_post", lens.input_site(i, "mlp.hook_in")]
    return names + (["ln_final.hook_scale"] if lens.ln_final.kind != NO_NORM else [])


def trace(lens: Lens, tokens: Tensor) -> Trace:
    """Record and verify one prompt, tokens (T,); raises as `traces`."""
    return traces(lens, lens.to_tokens(tokens)[None])[0]


@torch.no_grad()
def traces(lens: Lens, tokens: Tensor) -> list[Trace]:
    """Record and verify Q prompts of one length in one forward pass, tokens (Q, T).

    Raises ValueError where the model is not the linear map (given patterns and norm scales) that the engine
    takes it for, the sentence names the first place where it is not; where activations are NaN or infinite; and for
    tokens that the model cannot read.
    """
    from pullback.lens import record as rec

    check_ids(lens, tokens, "prompt")
    # Norm scales are recorded through an edit, which also makes a float64 RMSNorm compute in float64.
    logits, seen = rec.record(lens.model, tokens.to(lens.device), _sites(lens), rec.exact_norms(lens.model))
    dtype = lens.compute_dtype
    # Blocks may run on several devices; the frozen map is on one. Where the model adds one row of positions to all
    # prompts, it is recorded once.
    # One by one, so that a 16-bit model's patterns are not all there twice.
    at = {site: seen.pop(site).to(lens.device, dtype) for site in list(seen)}
    at = {site: t.expand(len(tokens), *t.shape[1:]) for site, t in at.items()}
    must_be_finite(lens, at)
    ones = at["hook_embed"].new_ones(*tokens.shape, 1)
    ln_final, W_U, b_U = lens.ln_final.to(dtype, lens.device), lens.W_U.to(dtype), lens.b_U.to(dtype)
    final_scale = at.get("ln_final.hook_scale", ones)

    def layer(i: int) -> LayerTrace:
        block, weights = f"blocks.{i}.", lens.layer_weights(i).to(dtype, lens.device)
        return LayerTrace(
            weights=weights,
            parallel=lens.parallel,
            x_pre=at[block + "hook_resid_pre"],
            ln1_scale=at.get(block + "ln1.hook_scale", ones),
            pattern=_without_subnormals(at.pop(block + "attn.hook_pattern")),
            ln1_post_scale=at.get(block + "ln1_post.hook_scale", ones),
            attn_out=at[block + "hook_attn_out"],
            ln2_scale=at.get(f"{block}{weights.ln2_at}.hook_scale", ones),
            mlp_out=at[block + "hook_mlp_out"],
        )

    layers = [layer(i) for i in range(lens.n_layers)]
    before_cap = ln_final(at[f"blocks.{lens.n_layers - 1}.hook_resid_post"], final_scale) @ W_U + b_U
    _verify(lens, layers, before_cap, logits.to(lens.device, dtype), at)
    str_tokens, T = lens.to_str_tokens(tokens), tokens.shape[1]
    return [
        Trace(
            model_name=lens.model_name,
            tokens=tokens[q],
            str_tokens=str_tokens[q * T : (q + 1) * T],
            embed=at["hook_embed"][q],
            pos_embed=at["hook_pos_embed"][q] if "hook_pos_embed" in at else None,
            layers=[layer.of_prompt(q) for layer in layers],
            ln_final=ln_final,
            final_scale=final_scale[q],
            logits=before_cap[q],
            W_U=W_U,
            b_U=b_U,
        )
        for q in range(len(tokens))
    ]


def _verify(lens: Lens, layers: list[LayerTrace], before_cap: Tensor, logits: Tensor, at: dict[str, Tensor]) -> None:
    """Compare every step of the frozen linear map with what the model did (`at`: recorded sites), prompt by prompt."""

    def size(t: Tensor) -> Tensor:
        return t.abs().flatten(1).amax(1)

    def must_equal(ours: Tensor, theirs: Tensor, what: str, floor: Tensor | None = None) -> None:
        scale = size(theirs) if floor is None else torch.maximum(size(theirs), floor)
        error = float((size(ours - theirs) / scale.clamp(min=1e-30)).max())
        if not error <= tolerance(lens.dtype):
            raise ValueError(
                f"{lens.model_name} is not linear here once patterns and norm scales are frozen: {what} differ from "
                f"the model's by {error:.1e} of its largest value. This architecture is not supported yet"
            )

    stream = at["hook_embed"] + at["hook_pos_embed"] if "hook_pos_embed" in at else at["hook_embed"]
    for i, layer in enumerate(layers):
        must_equal(stream, layer.x_pre, f"the activations entering block {i}")
        attended = layer.attend(layer.x_pre)
        # Attention may write nothing but rounding noise: then a hundredth of the stream is what to measure it by.
        must_equal(attended, layer.attn_out, f"the outputs of attention {i}", size(layer.x_pre) / 100)
        must_equal(layer.read("mlp.hook_in"), at[lens.input_site(i, "mlp.hook_in")], f"the inputs of MLP {i}")
        stream = at[f"blocks.{i}.hook_resid_post"]
        must_equal(layer.x_pre + layer.attn_out + layer.mlp_out, stream, f"the activations leaving block {i}")
    must_equal(lens.capped(before_cap), logits, "the logits")
