"""Ghost gradients: what the authors of transcoders gave dead features, so that they fire again (METHODS 1.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.ops import decode_csr, sampled_dot
from pullback.ops.sparse import SparseActivations
from pullback.training.loss import Part
from pullback.transcoders import FeatureLayer

# Every token meets every dead feature here, so there is a limit to how many are treated at a time.
MOST_FEATURES = 4096


def ghost_part(
    tc: FeatureLayer, x: Tensor, left: Tensor, errors: Tensor, dead: Tensor, step: int
) -> tuple[Tensor, Part]:
    """The loss of ghosts exp(h) of dead features, and its gradient.

    Their reconstruction is brought to half the norm of what is `left`, and each element of its loss to the size of the
    main loss; neither factor is differentiated:

        ghost = s exp(h) W_dec,  s = ||left|| / (1e-6 + 2 ||exp(h) W_dec||)
        loss = mean over elements of f (ghost - left)^2 / ||left||,  f = error / ((ghost - left)^2 / ||left|| + 1e-6)

    Args:
        x: Float[Tensor, "n d_in"].
        left: Float[Tensor, "n d_out"], what ghosts are to explain.
        errors: Float[Tensor, "n d_out"], the elements of the main loss before their mean.
        dead: Int64[Tensor, "n_dead"]. Of more than 4096, others in every step.
        step: 0, 1, ...
    """
    if len(dead) > MOST_FEATURES:
        dead = dead.roll(-step * MOST_FEATURES % len(dead))[:MOST_FEATURES].sort().values
    n, m = len(x), len(dead)
    h = torch.addmm(tc.b_enc[dead], x, tc.W_enc[dead].T)
    indptr = torch.arange(n + 1, device=x.device) * m
    ghosts = SparseActivations(indptr, dead.int().repeat(n), h.exp().flatten(), tc.d_sae)
    out = decode_csr(ghosts, tc.W_dec)
    norm = left.norm(dim=1, keepdim=True)
    s = norm / (1e-6 + 2 * out.norm(dim=1, keepdim=True))
    off = s * out - left
    norm = norm.clamp(min=torch.finfo(x.dtype).tiny)
    elements = off.square() / norm
    factor = errors / (elements + 1e-6)
    g = 2 * s * factor * off / norm / off.numel()
    dots = sampled_dot(g, tc.W_dec, indptr, ghosts.indices)
    part = Part(ghosts.indices, ghosts.rows().int(), dots * ghosts.values, ghosts.values, g)
    return (factor * elements).double().mean(), part
