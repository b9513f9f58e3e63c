"""How alike prompts are, by what their features weigh, and groups of prompts that are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pullback.attribution.collection.keys import Floats, Ints

MEASURES = ("jaccard", "cosine")
LINKAGES = ("average", "complete", "single")


def similarity(vectors: Sequence[tuple[Ints, Floats]], measure: str) -> Floats:
    """Pairwise similarity (n, n) of sparse non-negative vectors (keys, values).

    "jaccard": sum of minima over sum of maxima; "cosine": of the angle. Both are 1 on the diagonal and 0 where nothing
    is shared. One key is looked at after the other: memory is n^2, whatever the number of features.
    """
    if measure not in MEASURES:
        raise ValueError(f"collection: similarity must be one of {', '.join(MEASURES)}, got {measure!r}")
    n = len(vectors)
    owner = np.repeat(np.arange(n), [len(keys) for keys, _ in vectors])
    keys, values = (np.concatenate(column) for column in zip(*vectors, strict=True))
    order = np.argsort(keys, kind="stable")
    keys, values, owner = keys[order], values[order], owner[order]
    shared = np.zeros((n, n))
    combine = np.minimum.outer if measure == "jaccard" else np.multiply.outer
    for part in np.split(np.arange(len(keys)), np.flatnonzero(keys[1:] != keys[:-1]) + 1):
        shared[np.ix_(owner[part], owner[part])] += combine(values[part], values[part])
    size = shared.diagonal()
    whole = size[:, None] + size[None] - shared if measure == "jaccard" else np.sqrt(np.outer(size, size))
    alike = np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)
    np.fill_diagonal(alike, 1.0)
    return alike


def agglomerate(distance: Floats, n_clusters: int, linkage: str) -> Ints:
    """Labels (n) of clusters that are merged, the nearest two at a time, until `n_clusters` are left.

    Labels count up in the order in which clusters first occur; ties merge the earlier pair.
    """
    n = len(distance)
    if linkage not in LINKAGES:
        raise ValueError(f"collection: linkage must be one of {', '.join(LINKAGES)}, got {linkage!r}")
    if not 1 <= n_clusters <= n:
        raise ValueError(f"collection: n_clusters must lie in 1..{n}, the number of prompts, got {n_clusters}")
    d = distance.astype(np.float64)
    np.fill_diagonal(d, np.inf)
    size, label = np.ones(n), np.arange(n)
    for _ in range(n - n_clusters):
        a, b = sorted(divmod(int(d.argmin()), n))
        if linkage == "average":
            row = (size[a] * d[a] + size[b] * d[b]) / (size[a] + size[b])
        else:
            row = (np.maximum if linkage == "complete" else np.minimum)(d[a], d[b])
        row[a] = np.inf
        d[a] = d[:, a] = row
        d[b] = d[:, b] = np.inf
        size[a] += size[b]
        label[label == b] = a
    return np.unique(label, return_inverse=True)[1]
