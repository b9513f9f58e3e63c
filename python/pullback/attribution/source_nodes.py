"""The nodes of everything that edges can come from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pullback.attribution import nodes as k
from pullback.attribution.stack import Stack

KINDS = {
    **{"embedding": k.EMBEDDING, "position": k.POSITION, "features": k.FEATURE, "attn_features": k.ATTENTION_FEATURE},
    **{"errors": k.ERROR, "attn_errors": k.ATTENTION_ERROR, "mlp_bias": k.BIAS, "attn_bias": k.BIAS},
}


def source_nodes(stack: Stack) -> list[k.Nodes]:
    """Of every prompt of a stack, in the order of its layout."""
    names = [name for name, size in zip(stack.spans.names, stack.spans.sizes.amax(0).tolist(), strict=True) if size]
    parts = [_columns(stack, *name) for name in names]  # of each span: positions, feature ids, activations by prompt
    pos, feature, activation = (
        torch.cat([part[column][q] for q in range(stack.n_prompts) for part in parts]) for column in range(3)
    )
    kinds, layers = torch.tensor([(KINDS[kind], layer) for kind, layer in names], dtype=torch.int32).T
    sizes = torch.tensor([[len(part[0][q]) for part in parts] for q in range(stack.n_prompts)])
    kind, layer = (t.repeat(stack.n_prompts).repeat_interleave(sizes.flatten()) for t in (kinds, layers))
    preactivation = torch.where((kind == k.FEATURE) | (kind == k.ATTENTION_FEATURE), activation, torch.nan)
    columns = kind.to(torch.int8), layer, pos.to(torch.int32), feature, activation, preactivation
    of_prompts = zip(*(column.split(sizes.sum(1).tolist()) for column in columns), strict=True)
    return [k.Nodes(*own) for own in of_prompts]


def _columns(stack: Stack, kind: str, layer: int) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """Positions, feature ids and activations of one span, each of every prompt."""
    Q, T, dtype = stack.n_prompts, stack.n_pos, stack.embed.dtype
    if (kind, layer) in stack.active:
        acts = stack.active[kind, layer]
        sizes = [own[kind, layer].nnz for own in stack.acts]
        pos, feature, activation = acts.rows() % T, acts.indices.long(), acts.values.to(dtype)
        return pos.cpu().split(sizes), feature.cpu().split(sizes), activation.cpu().split(sizes)
    feature, activation = torch.full((Q, T), -1), torch.ones(Q, T, dtype=dtype)
    if kind == "embedding":
        feature = torch.stack([trace.tokens for trace in stack.traces]).cpu()
    elif kind in ("mlp_bias", "attn_bias"):
        feature.fill_(k.BIAS_KINDS.index(kind.removesuffix("_bias")))
    elif kind in ("errors", "attn_errors"):
        errors = stack.errors if kind == "errors" else stack.attn_errors
        activation = errors[layer].norm(dim=-1).to(dtype).cpu()
    return list(torch.arange(T).expand(Q, T)), list(feature), list(activation)
