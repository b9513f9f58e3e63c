"""Path search one path at a time, over dense vectors of all features, as METHODS 1.8, 1.9 and 1.13 describe the code of
Dunefsky et al.; for models whose norms are folded, with the factor <v, LN(x)> / <v, x> in the place of a norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pullback.attribution.local import LocalModel


@dataclass(frozen=True)
class Vector:
    name: str
    vector: Tensor
    layer: int
    sublayer: str
    token: int
    contrib: float
    is_feature: bool = False
    bias: float = 0.0


def ratio(v: Tensor, normed: Tensor, x: Tensor) -> float:
    before = float(v @ x)
    return float(v @ normed) / before if before else 0.0


class Search:
    def __init__(self, local: LocalModel, branches: int, *, raw: bool = True) -> None:
        self.local, self.branches, self.raw = local, branches, raw
        self.z = {i: acts.to_dense() for i, acts in local.acts.items()}

    def root(self, layer: int, pos: int, feature: int) -> Vector:
        tc, block = self.local.sets[layer], self.local.trace.layers[layer]
        v = tc.W_enc[feature].detach()
        v = v * ratio(v, block.read("ln2.hook_normalized")[pos], block.mlp_stream[pos])
        z = float(self.z[layer][pos, feature])
        name = f"{layer}_{feature}_{pos}"
        return Vector(name, v, layer, "resid_mid", pos, z, True, float(tc.b_enc[feature]))

    def greedy(self, root: Vector, iters: int) -> list[list[list[Vector]]]:
        paths, output = [[root]], []
        for _ in range(iters):
            new = [
                [*path, child]
                for path in paths
                if (path[-1].layer, path[-1].sublayer) != (0, "resid_pre")
                for child in self.children(path)
            ]
            paths = sorted(new, key=lambda path: -path[-1].contrib)[: self.branches]
            output.append(paths)
        return output

    def children(self, path: list[Vector]) -> list[Vector]:
        cur = path[-1]
        found: list[Vector] = []
        for k in range(self.local.n_layers):
            if k < cur.layer or (k == cur.layer and cur.sublayer == "resid_post"):
                found += self.best([self.feature(cur, k, j) for j in range(self.z[k].shape[1])], self.branches)
            if k < cur.layer or (k == cur.layer and cur.sublayer in ("resid_mid", "resid_post")):
                heads = self.local.trace.layers[k].pattern.shape[0]
                grid = [self.head(cur, k, h, s) for h in range(heads) for s in range(1, self.local.n_pos)]
                found += self.best(grid, min(self.branches, heads))
        start = self.local.trace.layers[0].x_pre[cur.token]
        token = int(self.local.trace.tokens[cur.token])
        embedded = float(start @ cur.vector)
        found.append(Vector(f"E_{token}_{cur.token}", cur.vector * 0, 0, "resid_pre", cur.token, embedded))
        if not self.raw:
            last = next(v for v in reversed(path) if v.is_feature)
            found = [Vector(**{**vars(v), "contrib": min(v.contrib, last.contrib)}) for v in found]
        return self.best(found, self.branches)

    def best(self, vectors: list[Vector], n: int) -> list[Vector]:
        # Those that contribute nothing are left out: they would be features that are not active.
        return sorted((v for v in vectors if v.contrib), key=lambda v: -v.contrib)[:n]

    def feature(self, cur: Vector, k: int, j: int) -> Vector:
        tc, block, t = self.local.sets[k], self.local.trace.layers[k], cur.token
        pulled = float(tc.W_dec[j] @ cur.vector)
        v = tc.W_enc[j].detach() * pulled
        v = v * ratio(v, block.read("ln2.hook_normalized")[t], block.mlp_stream[t])
        z = float(self.z[k][t, j])
        return Vector(f"{k}_{j}_{t}", v, k, "resid_mid", t, z * pulled, True, float(tc.b_enc[j]))

    def head(self, cur: Vector, k: int, h: int, s: int) -> Vector:
        block = self.local.trace.layers[k]
        w: Any = block.weights
        ov = w.W_V[h] @ w.W_O[h] @ cur.vector
        normed = w.ln1(block.x_pre, block.ln1_scale)[s]
        score = float(block.pattern[h, cur.token, s])
        v = score * ov * ratio(ov, normed, block.x_pre[s])
        return Vector(f"{k}_head_{h}_{s}", v, k, "resid_pre", s, score * float(normed @ ov))
