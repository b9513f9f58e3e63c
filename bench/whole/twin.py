"""tiny-mix as a model of transformers, for libraries that know no other: the same function, checked."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pullback.zoo.tinymix.files import load_lean
from pullback.zoo.tinymix.lean import ModelShape
from pullback.zoo.tinymix.tasks import training_batches

TOLERANCE = 1e-4  # of logits of size 10


def save(folder: Path) -> None:
    """Write the model where `from_pretrained` finds it.

    Raises:
        ValueError: its logits are not those of tiny-mix.
    """
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    lean, shape = load_lean(), ModelShape()
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=shape.d_vocab,
            hidden_size=shape.d_model,
            num_hidden_layers=shape.n_layers,
            num_attention_heads=shape.n_heads,
            intermediate_size=shape.d_mlp,
            hidden_act="relu",
            rotary_pct=1.0,  # pyright: ignore[reportCallIssue]
            max_position_embeddings=shape.n_ctx,
            layer_norm_eps=shape.eps,
            use_parallel_residual=False,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    model.load_state_dict(_renamed(lean.state_dict(), shape), strict=False)
    prompts = tokens(4, 16)
    with torch.no_grad():
        model.get_output_embeddings().weight.copy_(lean.head.weight)  # its name depends on the version
        off = float((model(prompts).logits - lean(prompts)).abs().max())
    if off > TOLERANCE:
        raise ValueError(
            f"tiny-mix of transformers is {off:.1e} off; does this version of transformers turn otherwise?"
        )
    model.save_pretrained(folder)


def tokens(rows: int, length: int) -> Tensor:
    """Int64[Tensor, 'rows length'] of what its transcoders are trained on, one prompt behind another; rows shuffled, as
    a trainer that does not mix them expects."""
    found, held = [], 0
    for prompts, real in training_batches(seed=1):
        found.append(prompts[real])
        held += len(found[-1])
        if held >= rows * length:
            break
    packed = torch.cat(found)[: rows * length].reshape(rows, length)
    return packed[torch.randperm(rows, generator=torch.Generator().manual_seed(2))]


def _renamed(weights: dict[str, Tensor], shape: ModelShape) -> dict[str, Tensor]:
    """The norms have no parameters here: there they keep their ones and zeros."""
    named = {"gpt_neox.embed_in.weight": weights["tok_embed.weight"]}
    for i in range(shape.n_layers):
        ours, theirs = f"layers.{i}.", f"gpt_neox.layers.{i}."
        for kind in ("weight", "bias"):
            q, k, v = (weights[f"{ours}attn.{part}.{kind}"] for part in "qkv")
            heads = (_halves(q, shape), _halves(k, shape), v.unflatten(0, (shape.n_heads, shape.d_head)))
            named[f"{theirs}attention.query_key_value.{kind}"] = torch.cat(heads, 1).flatten(0, 1)
            named[f"{theirs}attention.dense.{kind}"] = weights[f"{ours}attn.o.{kind}"]
            named[f"{theirs}mlp.dense_h_to_4h.{kind}"] = weights[f"{ours}mlp.fc_in.{kind}"]
            named[f"{theirs}mlp.dense_4h_to_h.{kind}"] = weights[f"{ours}mlp.fc_out.{kind}"]
    return named


def _halves(rows: Tensor, shape: ModelShape) -> Tensor:
    """By head, the rows that turn together: beside each other here, half a head apart there."""
    heads = rows.unflatten(0, (shape.n_heads, shape.d_head // 2, 2))
    return heads.transpose(1, 2).flatten(1, 2)
