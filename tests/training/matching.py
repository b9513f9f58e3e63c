"""One true feature, one learned one: the best pairing."""

from __future__ import annotations

import torch


def best_matching(similarity):
    """Mean similarity of the best one-to-one pairing of rows with columns, Float[Tensor, "n m"] with n <= m (the mean
    correlation coefficient, MCC): the Hungarian method by shortest augmenting paths with potentials."""
    cost = -similarity.double()
    n, m = cost.shape
    row_price, column_price = cost.new_zeros(n), cost.new_zeros(m)
    owner = torch.full((m,), -1)
    for row in range(n):
        best = cost.new_full((m,), torch.inf)
        before = torch.full((m,), -1)
        done = torch.zeros(m, dtype=torch.bool)
        at, last, length = row, -1, 0.0
        while True:
            reduced = length + cost[at] - row_price[at] - column_price
            closer = ~done & (reduced < best)
            best[closer], before[closer] = reduced[closer], last
            last = int(best.masked_fill(done, torch.inf).argmin())
            length = best[last]
            done[last] = True
            if owner[last] < 0:
                break
            at = int(owner[last])
        inside = done.nonzero().flatten()
        row_price[row] += length
        for column in inside.tolist():
            if owner[column] >= 0:
                row_price[owner[column]] += length - best[column]
        column_price[inside] += best[inside] - length
        while last >= 0:
            previous = int(before[last])
            owner[last] = row if previous < 0 else owner[previous]
            last = previous
    matched = (owner >= 0).nonzero().flatten()
    return float(similarity[owner[matched], matched].mean())
