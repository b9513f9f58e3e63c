"""`Lens`: what this library needs to know of a TransformerLens model, and the one way to run it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pullback.lens import record as rec
from pullback.lens.fingerprint import fingerprint
from pullback.lens.placed import at_hand
from pullback.lens.stand_ins import stand_ins
from pullback.lens.tokens import Prompt, check_ids
from pullback.lens.weights import LayerNorms, LayerWeights, Norm, mlp_input_weight, read_layer, read_norm, read_norms
from pullback.transcoders import LayeredDictionary, ModelReading

if TYPE_CHECKING:
    from pullback.lens.unhooked import Unhooked

INPUT_SITES = ("mlp.hook_in", "ln2.hook_normalized", "ln2.hook_out", "hook_resid_mid")
OUTPUT_SITES = ("hook_mlp_out", "mlp.hook_out", "hook_attn_out")


def as_lens(model: Any) -> Lens:
    """The lens on a model, or the lens itself; one lens per model object."""
    if isinstance(model, Lens):
        return model
    lens = getattr(model, "__dict__", {}).get("_pullback_lens")
    if lens is None or lens.model is not model:  # a shallow copy of a model brings the original's lens along
        lens = Lens(model)
        model.__dict__["_pullback_lens"] = lens  # not setattr: a lens is no submodule
    return lens


def _transformer_lens_version() -> str:
    """From the installed package: 3.x modules do not carry it."""
    try:
        return importlib.metadata.version("transformer_lens")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


class Lens:
    """Adapter over `TransformerBridge` (TransformerLens 3.9 and later) and `HookedTransformer` (3.x).

    Attributes are read from the model's configuration where that can be trusted, and measured where it cannot:
    `parallel` compares what ln2 reads, `norm` and `folded` look at the modules and their weights.

    Raises ValueError for an object that has no blocks, hooks or configuration.
    """

    def __init__(self, model: Any) -> None:
        missing = [a for a in ("cfg", "blocks", "hooks", "hook_dict") if not hasattr(model, a)]
        if missing:
            raise ValueError(
                f"lens: {type(model).__name__} is no TransformerLens model (no {', '.join(missing)}); "
                "open it with TransformerBridge.boot_transformers or boot_native"
            )
        self.model = model
        cfg = model.cfg
        self.n_layers: int = int(cfg.n_layers)
        self.d_model: int = int(cfg.d_model)
        self.n_heads: int = int(cfg.n_heads)
        self.d_head: int = int(cfg.d_head)
        self.n_ctx: int = int(cfg.n_ctx)
        self.gated: bool = bool(getattr(cfg, "gated_mlp", False))
        self.model_name: str = str(getattr(cfg, "model_name", None) or "unnamed")

    # ---- what the model is ----------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        return self.W_U.dtype

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the frozen map is computed in: the model's own dtype, float32 for 16-bit models."""
        return self.dtype if self.dtype == torch.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        return self.W_U.device

    @property
    def W_U(self) -> Tensor:
        """(d_model, d_vocab)"""
        return self.model.W_U.detach()

    @property
    def W_E(self) -> Tensor:
        """(d_vocab, d_model)"""
        return self.model.W_E.detach()

    @property
    def b_U(self) -> Tensor:
        """(d_vocab), zeros where the model has none."""
        b = getattr(self.model, "b_U", None)
        return self.W_U.new_zeros(self.d_vocab) if b is None else b.detach().to(self.W_U)

    @property
    def d_vocab(self) -> int:
        return int(self.W_U.shape[1])

    def layer_weights(self, layer: int) -> LayerWeights:
        block = self.model.blocks[layer]
        with at_hand(*(part for name, part in block.named_children() if name != "mlp")):
            return read_layer(self.model, layer)

    def layer_norms(self, layer: int) -> LayerNorms:
        """The same without the attention's weights, which may have to be fetched."""
        block = self.model.blocks[layer]
        with at_hand(*(getattr(block, name, None) for name in ("ln1", "ln1_post", "ln2"))):
            return read_norms(block)

    @property
    def ln_final(self) -> Norm:
        return read_norm(getattr(self.model, "ln_final", None))

    @property
    def n_kv_heads(self) -> int:
        return int(self.layer_weights(0).W_V.shape[0])

    @property
    def norm(self) -> str:
        return self.layer_norms(0).ln2.kind

    @property
    def folded(self) -> bool:
        """Whether the MLP norms' affine is absent or the identity: `ln2.hook_normalized` is then the MLP's input."""
        return all(self.layer_norms(i).ln2.folded for i in range(self.n_layers))

    @property
    def logit_soft_cap(self) -> float | None:
        cap = float(getattr(self.model.cfg, "output_logits_soft_cap", -1.0) or -1.0)
        return cap if cap > 0 else None

    def capped(self, logits: Tensor) -> Tensor:
        """Logits as the model gives them, from logits before its soft cap."""
        cap = self.logit_soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def uncapped(self, logits: Tensor) -> Tensor:
        """Logits before the model's soft cap, from logits as it gives them."""
        cap = self.logit_soft_cap
        return logits if cap is None else cap * torch.atanh(logits / cap)

    @property
    def positional(self) -> str:
        """'learned' where a position vector is added to the stream, else the configuration's word ('rotary', ...).

        `Trace` verifies it: token and position vectors must add up to the first residual stream.
        """
        word = str(getattr(self.model.cfg, "positional_embedding_type", None) or "standard").lower()
        return "learned" if word == "standard" and "hook_pos_embed" in rec.hook_names(self.model) else word

    @property
    def rotary(self) -> bool:
        return self.positional == "rotary"

    @cached_property
    def parallel(self) -> bool:
        """Whether the MLP reads the stream before attention writes. Measured: configurations have been seen to lie."""
        from pullback.lens.structure import measure_parallel

        return measure_parallel(self)

    def fingerprint(self, layer: int) -> str | None:
        """Of the layer's MLP input weight: equal up to rounding through float32, float64 and bfloat16."""
        with at_hand(getattr(self.model.blocks[layer], "mlp", None)):
            weight = mlp_input_weight(self.model, layer)
            return None if weight is None else fingerprint(weight)

    def reading(self, layer: int | None) -> ModelReading:
        """How this model is read at one layer: what a transcoder trained here records. None: at whichever layer."""
        return ModelReading(
            model_name=self.model_name,
            n_layers=self.n_layers,
            d_model=self.d_model,
            d_vocab=self.d_vocab,
            norm=self.norm,
            folded=self.folded,
            parallel=self.parallel,
            tl_version=_transformer_lens_version(),
            layer=layer,
            mlp_fingerprint=None if layer is None else self.fingerprint(layer),
        )

    # ---- sites --------------------------------------------------------------------------------------------------

    def input_site(self, layer: int, hook_in: str) -> str:
        """Full name of a transcoder's input hook; `ln2.hook_out` and `mlp.hook_in` are the same tensor."""
        if hook_in not in INPUT_SITES:
            raise ValueError(f"lens: hook_in must be one of {', '.join(INPUT_SITES)}, got '{hook_in}'")
        if hook_in == "hook_resid_mid" and self.parallel:
            raise ValueError(f"lens: {self.model_name} has parallel blocks and so no hook_resid_mid; use mlp.hook_in")
        name, behind_norm = f"blocks.{layer}.{hook_in}", f"blocks.{layer}.mlp.hook_in"
        if name == behind_norm or name in rec.hook_names(self.model):
            return name
        if hook_in == "ln2.hook_out":
            return behind_norm
        raise ValueError(f"lens: {self.model_name} has no hook '{name}' (its norm is {self.norm}); use mlp.hook_in")

    def output_site(self, layer: int, hook_out: str) -> str:
        if hook_out not in OUTPUT_SITES:
            raise ValueError(f"lens: hook_out must be one of {', '.join(OUTPUT_SITES)}, got '{hook_out}'")
        name = f"blocks.{layer}.{hook_out}"
        if hook_out == "mlp.hook_out" and name not in rec.hook_names(self.model):
            return f"blocks.{layer}.hook_mlp_out"
        return name

    def site_pair(self, layer: int, hook_in: str, hook_out: str) -> tuple[str, str]:
        """Full names of where a dictionary reads and writes. An autoencoder reads the output that it stands in for."""
        if hook_in == hook_out:
            site = self.output_site(layer, hook_out)
            return site, site
        site_in, site_out = self.input_site(layer, hook_in), self.output_site(layer, hook_out)
        if hook_out == "hook_attn_out":
            raise ValueError(
                f"lens: {hook_in} -> hook_attn_out: attention mixes positions, so no dictionary of one position stands "
                "in for it; an autoencoder of its output does, hook_in='hook_attn_out'"
            )
        return site_in, site_out

    def sites(self, sets: LayeredDictionary, layers: Iterable[int]) -> dict[int, tuple[str, str]]:
        return {i: self.site_pair(i, sets.hook_in(i), sets.hook_out(i)) for i in layers}

    def check(self, sets: LayeredDictionary, *, strict: bool = True) -> None:
        """Refuse transcoders that were trained on another model, hook or reading of it (ValueError says which)."""
        from pullback.lens.compat import check_compatible

        check_compatible(self, sets, strict=strict)

    def fitted(self, sets: LayeredDictionary, *, strict: bool = True) -> LayeredDictionary:
        """The set, checked, in the dtype and on the device that this model is computed in; the given one stays."""
        self.check(sets, strict=strict)
        return sets.to(dtype=self.compute_dtype, device=self.device)

    # ---- tokens -------------------------------------------------------------------------------------------------

    def to_tokens(self, prompt: Prompt) -> Tensor:
        """One prompt as token ids (T,). Strings get BOS by the model's own default, ids are taken as given, messages of
        a chat go through the tokenizer's template.

        Raises ValueError for an empty prompt, one longer than the context, ids outside the vocabulary, or a chat where
        there is no template.
        """
        from pullback.lens.tokens import to_tokens

        return to_tokens(self, prompt)

    def tokenize(self, text: str) -> Tensor:
        """A text of any length as token ids (T,), with BOS by the model's own default. Raises ValueError without a
        tokenizer."""
        from pullback.lens.tokens import tokenize

        return tokenize(self, text)

    def to_str_tokens(self, tokens: Tensor) -> list[str]:
        from pullback.lens.tokens import to_str_tokens

        return to_str_tokens(self, tokens)

    # ---- running ------------------------------------------------------------------------------------------------

    @property
    def exact_edits(self) -> list[tuple[str, rec.Edit]]:
        """Needed only where the model is float64 (METHODS 0.3, float64 trap)."""
        return rec.exact_norms(self.model) if self.dtype == torch.float64 else []

    @torch.no_grad()
    def record(
        self, tokens: Tensor, sites: Sequence[str], edits: Sequence[tuple[str, rec.Edit]] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, T, V) and tensors at sites, for tokens (B, T), without gradients.

        Raises ValueError for tokens that this model cannot read.
        """
        check_ids(self, tokens, "tokens")
        return rec.record(self.model, tokens.to(self.device), sites, [*self.exact_edits, *edits])

    @torch.no_grad()
    def record_only(self, tokens: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
        """As `record`, without the logits: the forward pass ends at the last of the sites."""
        check_ids(self, tokens, "tokens")
        return rec.record_only(self.model, tokens.to(self.device), sites, self.exact_edits)

    def logits(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> logits (B, T, V)"""
        return self.record(tokens, [])[0]

    def mlp_io(
        self,
        tokens: Tensor,
        layers: Iterable[int] | None = None,
        hook_in: str = "mlp.hook_in",
        hook_out: str = "hook_mlp_out",
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Inputs and targets of dictionaries from one forward pass, which ends at the last of these layers: tokens
        (B, T) -> {l: (x, y)}, each (B, T, d). Of an autoencoder, whose hooks are the same, x is y."""
        chosen = range(self.n_layers) if layers is None else list(layers)
        wrong = [i for i in chosen if not 0 <= i < self.n_layers]
        if wrong:
            raise ValueError(f"lens: no layers {wrong} in a model of {self.n_layers} layers")
        sites = {i: self.site_pair(i, hook_in, hook_out) for i in chosen}
        seen = self.record_only(tokens, [s for pair in sites.values() for s in pair])
        return {i: (seen[a], seen[b]) for i, (a, b) in sites.items()}

    def unhooked(self) -> Unhooked:
        """`mlp_io` of the weights as they are now, by a plain forward pass where that does what this model does."""
        from pullback.lens.unhooked import Unhooked

        return Unhooked(self)

    @contextmanager
    def patch_mlp(
        self,
        fns: Mapping[int, Callable[[Tensor, Tensor], Tensor]],
        hook_in: str = "mlp.hook_in",
        hook_out: str = "hook_mlp_out",
    ) -> Iterator[Lens]:
        """Inside, each layer's output y (the MLP's, or attention's) is replaced by fns[layer](x, y); afterwards the
        model is as it was."""
        sites = {i: self.site_pair(i, hook_in, hook_out) for i in fns}
        with rec.hooked(self.model, rec.patch_edits(fns, sites)):
            yield self

    @contextmanager
    def replace(
        self, sets: LayeredDictionary, layers: Iterable[int] | None = None, *, strict: bool = True
    ) -> Iterator[Lens]:
        """Inside, the set's dictionaries stand in for the outputs of `layers` (default: all that it has). Features of a
        cross-layer transcoder write to them from all layers below, replaced or not."""
        sets = self.fitted(sets, strict=strict)
        chosen = list(sets.layers if layers is None else layers)
        missing = [i for i in chosen if i not in sets]
        if missing:
            raise ValueError(f"lens.replace: the set has no transcoder for layers {missing}; it has {sets.layers}")
        fns = stand_ins(sets, chosen)
        with rec.hooked(self.model, rec.patch_edits(fns, self.sites(sets, fns))):
            yield self
