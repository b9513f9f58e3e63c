"""The linear engine: target vectors pulled down the frozen model, without autograd and without copies of the prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.attribution.local import LocalModel
from pullback.attribution.targets import Targets
from pullback.lens import LayerTrace
from pullback.ops import contract


def bytes_per_target(local: LocalModel) -> int:
    """Working memory that one more target in a batch costs, about: gradients at every position, a row of edges."""
    w = local.trace.layers[0].weights
    at_heads = 3 * w.W_O.shape[0] * w.W_O.shape[1]  # at z, permuted, and at the values
    at_stream = 4 * local.trace.embed.shape[1]  # R, M, A and what comes back through the heads
    edges = 4 * local.layout.n_sources  # the row, and what its sparse form takes while it is made
    return (local.n_pos * (at_stream + at_heads) + edges) * local.trace.embed.element_size()


def linear_rows(local: LocalModel, targets: Targets) -> tuple[Tensor, Tensor]:
    """Direct effects of all sources on B targets: edges (B, n_sources), and the mass of zeroed positions (B).

    edge[b, s] = a_s * <J^T v_b, u_s>: u_s is the decoder row, error, bias or embedding vector of source s, J the map
    through residual stream, frozen attention and norms (ARCHITECTURE, "How attribution is computed"; METHODS 1.7, 5.1).
    """
    order = torch.argsort(targets.layer, descending=True, stable=True)
    edges, zeroed = _sweep(local, targets[order])
    back = torch.argsort(order)
    return edges[back], zeroed[back]


def _sweep(local: LocalModel, targets: Targets) -> tuple[Tensor, Tensor]:
    """The same for targets sorted by layer, highest first: row b is alive once the sweep has come down to its layer."""
    t, layout = local.trace, local.layout
    B, d = targets.vectors.shape
    P = int(targets.pos.max()) + 1  # the causal cone: nothing after the last target's position matters
    edges = targets.vectors.new_zeros(B, layout.n_sources)
    zeroed = targets.vectors.new_zeros(B)
    R = targets.vectors.new_zeros(P, B, d)  # gradient at the residual stream, position-major
    alive = int((targets.layer == local.n_layers).sum())
    if alive:
        top = slice(0, alive)
        R[targets.pos[top], torch.arange(alive, device=R.device)] = t.ln_final.pullback(
            targets.vectors[top], t.final_scale[targets.pos[top]]
        )
    for i in reversed(range(local.n_layers)):
        layer = t.layers[i]
        if alive:
            _contract_mlp(local, i, R[:, :alive], edges[:alive], zeroed[:alive])
        M, alive_below = _into_mlp_stream(local, i, targets, R, alive)
        if alive_below == 0:
            continue
        # A parallel block's attention does not feed its own MLP, so what enters at the MLP's input does not reach it.
        A = R[:, :alive] if layer.parallel else R[:, :alive_below] + M
        n = A.shape[1]
        if n:
            edges[:n, layout.attn_bias[i]][:, :P] += _at_each_position(A, local.attn_bias[i][:P])
            through_heads = ov_pullback(layer, A)
            R[:, :n] += through_heads
        R[:, :alive_below] += M
        alive = alive_below
    edges[:, layout.embedding][:, :P] = _at_each_position(R, t.embed[:P])
    if t.pos_embed is not None:
        edges[:, layout.position][:, :P] = _at_each_position(R, t.pos_embed[:P])
    return edges, zeroed


def _at_each_position(G: Tensor, u: Tensor) -> Tensor:
    """<G[p, b], u[p]> for one vector a position: (P, B, d), (P, d) -> (B, P)."""
    return torch.einsum("pbd,pd->bp", G, u)


def _contract_mlp(local: LocalModel, i: int, G: Tensor, edges: Tensor, zeroed: Tensor) -> None:
    """Edges from everything that writes to the MLP output of layer i, at gradients G (P, B, d)."""
    P, layout = G.shape[0], local.layout
    batch_major = G.transpose(0, 1)
    for src in local.sets.sources(i):
        acts = local.acts[src][:P]
        contract(batch_major, acts, local.sets.decoder(src, i), out=edges[:, layout.features[src]][:, : acts.nnz])
    edges[:, layout.errors[i]][:, :P] = _at_each_position(G, local.errors[i][:P])
    if i in local.mlp_bias:
        edges[:, layout.mlp_bias[i]][:, :P] = _at_each_position(G, local.mlp_bias[i][:P])
    if local.zeroed is not None:
        zeroed += _at_each_position(G, local.zeroed[i][:P]).sum(1)


def _into_mlp_stream(local: LocalModel, i: int, targets: Targets, R: Tensor, alive: int) -> tuple[Tensor, int]:
    """Gradient entering the stream at the MLP's input: skip connections and this layer's targets, (P, alive', d)."""
    layer = local.trace.layers[i]
    below = alive + int((targets.layer == i).sum())
    M = R.new_zeros(R.shape[0], below, R.shape[2])
    W_skip = local.sets.skip(i) if i in local.sets else None
    if alive and W_skip is not None:
        P = R.shape[0]
        positions = torch.arange(P, device=R.device).repeat_interleave(alive)
        read = (R[:, :alive] @ W_skip).reshape(P * alive, -1)
        M[:, :alive] = layer.read_pullback(local.sets.hook_in(i), read, positions).view(P, alive, -1)
    if below > alive:
        rows = torch.arange(alive, below, device=R.device)
        pos = targets.pos[rows]
        M[pos, rows] = layer.read_pullback(local.sets.hook_in(i), targets.vectors[rows], pos)
    return M, below


def ov_pullback(layer: LayerTrace, A: Tensor) -> Tensor:
    """Gradient at attention's output (P, B, d) -> at the stream it reads, through frozen W_O, pattern, W_V and ln1."""
    w = layer.weights
    H, d_head, d = w.W_O.shape
    K = w.W_V.shape[0]
    P, B = A.shape[:2]
    at_z = (A.reshape(P * B, d) @ w.W_O.reshape(H * d_head, d).T).view(P, B, H, d_head)
    at_z = at_z.permute(2, 0, 1, 3).reshape(H, P, B * d_head)
    pattern = layer.pattern[:, :P, :P]
    at_v = pattern.transpose(1, 2) @ at_z
    at_v = at_v.view(K, H // K, P, B, d_head).sum(1)  # query heads share a key/value head
    at_x = at_v.permute(1, 2, 0, 3).reshape(P * B, K * d_head) @ w.W_V.transpose(1, 2).reshape(K * d_head, d)
    return w.ln1.pullback(at_x.view(P, B, d), layer.ln1_scale[:P, None, :])
