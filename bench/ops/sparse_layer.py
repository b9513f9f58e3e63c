"""What a backward pass of a sparse layer starts from, and the ways torch has to sum its weight gradients."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from bench import data
from bench.registry import Case


@dataclass(frozen=True)
class Layer:
    """x (N, d), the gradient g (N, d) of the output, W_dec (F, d); values > 0 (N, k) at ids Int32 (N, k)."""

    x: Tensor
    g: Tensor
    values: Tensor
    ids: Tensor
    W_dec: Tensor

    @property
    def n_features(self) -> int:
        return len(self.W_dec)

    @property
    def indptr(self) -> Tensor:
        n, k = self.ids.shape
        return torch.arange(n + 1, device=self.ids.device) * k


def make(case: Case, device: torch.device, g: torch.Generator) -> Layer:
    N, d, F, k = (case.shape[name] for name in "NdFk")
    return Layer(
        x=data.normal(case, device, g, N, d),
        g=data.normal(case, device, g, N, d) / N,
        values=data.normal(case, device, g, N, k).abs() + 0.1,
        ids=data.distinct_ids(N, k, F, device, g).int(),
        W_dec=data.normal(case, device, g, F, d) / d**0.5,
    )


def dots(g: Tensor, W: Tensor, ids: Tensor) -> Tensor:
    """<g[n], W[ids[n, j]]>: Float[Tensor, "n k"], by torch, in pieces: on a CPU of what fits a cache."""
    out = g.new_empty(ids.shape)
    piece = 128 if g.is_cpu else 2048
    for start in range(0, len(g), piece):
        part = slice(start, start + piece)
        torch.bmm(W[ids[part].long()], g[part, :, None], out=out[part, :, None])
    return out


with warnings.catch_warnings():
    # torch says once a process that its CSR support is in beta; it may say so here, unheard.
    warnings.simplefilter("ignore")
    torch.eye(1).to_sparse_csr()


class Transposed:
    """The entries by feature, as a torch CSR matrix (F, N): its products are the weight gradients.

    The best stock ops there are: no N x F matrix, and on a CPU the vendor's sparse product.
    """

    def __init__(self, ids: Tensor, n_features: int) -> None:
        self.n, self.n_features = len(ids), n_features
        flat = ids.flatten()
        self.order = flat.argsort()
        counts = torch.bincount(flat, minlength=n_features)
        self.starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
        self.columns = (self.order // ids.shape[1]).int()

    def times(self, values: Tensor, dense: Tensor) -> Tensor:
        """out[f] = sum of values * dense[row] over the entries of feature f: Float[Tensor, "F d"]."""
        sparse = torch.sparse_csr_tensor(
            self.starts,
            self.columns,
            values.flatten()[self.order],
            (self.n_features, self.n),
            check_invariants=False,
        )
        return sparse @ dense


def exact_gradients(layer: Layer, places: Tensor) -> tuple[data.Sampled, data.Sampled, data.Sampled]:
    """dW_enc, db_enc and dW_dec of the features `places`, in float64, and what float32 may be off."""
    x, g, W = layer.x.double(), layer.g.double(), layer.W_dec.double()
    d_enc, b_enc, d_dec = [], [], []
    terms = layer.x.shape[1]
    for f in places.tolist():
        row, slot = (layer.ids == f).nonzero(as_tuple=True)
        value = layer.values[row, slot].double()
        dot, size = g[row] @ W[f], g[row].abs() @ W[f].abs()
        d_enc.append((dot @ x[row], size @ x[row].abs()))
        b_enc.append((dot.sum(), size.sum()))
        d_dec.append((value @ g[row], value @ g[row].abs()))
        terms = max(terms, len(row))

    def sampled(pairs: list[tuple[Tensor, Tensor]]) -> data.Sampled:
        expected, magnitude = (torch.stack(part) for part in zip(*pairs, strict=True))
        return data.Sampled(places, expected, data.rounding(2 * terms, magnitude, expected, layer.x.dtype))

    return sampled(d_enc), sampled(b_enc), sampled(d_dec)
