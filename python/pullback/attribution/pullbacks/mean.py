"""Mean attributions over a corpus, beside the pullbacks that they are made of (METHODS 1.10)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pullback.attribution.pullbacks.invariant import DENSE, pullback
from pullback.attribution.pullbacks.reads import FeatureIds
from pullback.attribution.pullbacks.sums import MeanActivations
from pullback.attribution.weights.corpus import corpus_features
from pullback.attribution.weights.interference import spearman
from pullback.attribution.weights.wiring import Wiring
from pullback.transcoders import LayeredDictionary

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class MeanAttribution:
    """What all features of lower layers add to r target features at the same token, by weights and on a corpus.

    Every table is Float64[Tensor, 'r F'] of one source layer, or [F] where targets do not matter. z are activations, P
    pullbacks, which leave out the denominators of norms.
    """

    targets: list[str]  # r: "{layer}_{feature}"
    pullbacks: dict[int, Tensor]  # {source layer: (r, F)}
    sums: MeanActivations

    def mean(self, layer: int) -> Tensor:
        """P E[z], over all tokens."""
        return self.pullbacks[layer] * self.sums.met[layer].mean_b

    def while_active(self, layer: int) -> Tensor:
        """P E[z | the target fires]; 0 for a target that never did."""
        return self.pullbacks[layer] * self._dense(layer, "products") / self.sums.firings.clamp(min=1)[:, None]

    def per_firing(self, layer: int) -> Tensor:
        """P E[z | z is not 0]: the sum of attributions over the number of tokens that have one."""
        return self.pullbacks[layer] * self.sums.met[layer].sums_b / self.sums.fired[layer].clamp(min=1)

    def frequency(self, layer: int) -> Tensor:
        """The share of tokens on which each source is not 0, [F]."""
        return self.sums.fired[layer].double() / max(1, self.sums.n_tokens)

    def together(self, layer: int) -> Tensor:
        """Of the tokens on which a target fires, the share on which a source does; 0 for a target that never did."""
        return self._dense(layer, "gated") / self.sums.firings.clamp(min=1)[:, None]

    def to_pandas(self, k: int = 20) -> pd.DataFrame:
        """The k sources of each target with the largest mean attribution in absolute value, over all layers: target,
        layer, source, pullback, mean, while_active, per_firing, frequency, together."""
        mean = torch.cat([self.mean(layer) for layer in self.sums.layers], 1)
        return self._table(mean.abs().argsort(dim=1, descending=True, stable=True)[:, :k])

    def interference(self, k: int = 20, *, at_most: float = 1e-3) -> pd.DataFrame:
        """Of each target's k sources of largest pullback, those that fire on at most this share of the tokens on which
        it does: wired, and hardly ever used. Columns as `to_pandas`. Targets that never fired have none."""
        weights = torch.cat([self.pullbacks[layer] for layer in self.sums.layers], 1)
        table = self._table(weights.abs().argsort(dim=1, descending=True, stable=True)[:, :k])
        fired = {name for name, n in zip(self.targets, self.sums.firings.tolist(), strict=True) if n}
        return table.loc[(table.together <= at_most) & table.target.isin(list(fired))].reset_index(drop=True)

    def compare(self, k: int = 20) -> pd.DataFrame:
        """How far pullbacks are from what they do on the corpus: target, layer, and of the mean over all tokens, and of
        that over tokens where the target fires: which part of the k of largest absolute value they share with the
        pullbacks (overlap, overlap_active), and Spearman's rank correlation with them (spearman, spearman_active)."""
        import pandas as pd

        if k < 1:
            raise ValueError(f"mean attribution: k must be at least 1, got {k}")
        rows = []
        for layer in self.sums.layers:
            measures = {"": self.mean(layer), "_active": self.while_active(layer)}
            for n, target in enumerate(self.targets):
                row: dict[str, Any] = {"target": target, "layer": layer}
                for which, means in measures.items():
                    row[f"overlap{which}"] = _overlap(self.pullbacks[layer][n], means[n], k)
                    row[f"spearman{which}"] = spearman(self.pullbacks[layer][n], means[n])
                rows.append(row)
        return pd.DataFrame(rows)

    def _dense(self, layer: int, name: str) -> Tensor:
        sums = self.sums.met[layer].to_csr()
        dense = torch.zeros_like(self.pullbacks[layer])
        rows = torch.repeat_interleave(torch.arange(len(dense)), sums.indptr.diff())
        dense[rows, sums.indices.long()] = getattr(sums, name)
        return dense

    def _table(self, chosen: Tensor) -> pd.DataFrame:
        """chosen (r, k): columns of the tables of all layers side by side."""
        import pandas as pd

        layers = self.sums.layers
        r = len(self.targets)
        sizes = torch.tensor([len(self.sums.fired[layer]) for layer in layers])
        where = torch.repeat_interleave(torch.tensor(layers), sizes)
        ids = torch.cat([torch.arange(int(size)) for size in sizes])

        def column(table: Any) -> Any:
            parts = [table(layer) for layer in layers]
            whole = torch.cat([part.expand(r, -1) for part in parts], 1)
            return whole.gather(1, chosen).flatten().numpy()

        return pd.DataFrame(
            {
                "target": [name for name in self.targets for _ in range(chosen.shape[1])],
                "layer": where[chosen].flatten().numpy(),
                "source": ids[chosen].flatten().numpy(),
                "pullback": column(self.pullbacks.__getitem__),
                "mean": column(self.mean),
                "while_active": column(self.while_active),
                "per_firing": column(self.per_firing),
                "frequency": column(self.frequency),
                "together": column(self.together),
            }
        )


def _overlap(a: Tensor, b: Tensor, k: int) -> float:
    """Of two vectors (F), the part of the k largest in absolute value that both have; what is 0 is not among them."""
    largest = [one.abs().argsort(descending=True, stable=True)[:k] for one in (a, b)]
    used = largest[1][b[largest[1]] != 0]
    return float(torch.isin(largest[0], used).double().mean())


@torch.no_grad()
def mean_attribution(
    model: Any,
    sets: LayeredDictionary,
    tokens: Tensor | Iterable[Tensor],
    layer: int,
    features: FeatureIds,
    *,
    layers: Sequence[int] | None = None,
    mask: Tensor | None = None,
    batch_size: int = 32,
    exclude_bos: bool = True,
    into: MeanActivations | None = None,
    strict: bool = True,
    verbose: bool = True,
) -> MeanAttribution:
    """The mean attribution of every feature of lower layers to chosen features at the same token, in one pass.

    Args:
        model, sets: a model and its transcoders.
        tokens: Int[Tensor, 'n T'], or batches of prompts of one length each.
        layer, features: the targets; features None: all of the layer.
        layers: of the sources; None: all below.
        mask, batch_size, exclude_bos: as `expected_attributions`.
        into: `MeanActivations` to go on with: as many prompts as it has seen are passed over. It is counted into as the
            pass goes on, so what was counted outlives an interrupt.
        verbose: show a progress bar.

    Raises:
        ValueError: features or layers that there are not; a table of all pairs that is too large; tokens that the model
            cannot read; sums of other features; transcoders of another model, or autoencoders.
    """
    wiring = Wiring(model, sets, strict=strict)
    ids = wiring.ids(layer, features).cpu()
    if len(ids.unique()) < len(ids):
        raise ValueError("mean_attribution: a target feature is named twice")
    chosen = [below for below in wiring.sets.layers if below < layer] if layers is None else sorted(set(layers))
    for source in chosen:
        wiring.must_follow(source, layer)
    sizes = sum(wiring.sets[source].d_sae for source in chosen)
    if not chosen or len(ids) * sizes > DENSE:
        raise ValueError(
            f"mean_attribution: {len(ids)} targets by {sizes} features of layers {chosen}: give targets above some "
            "layer of the set, and fewer of them"
        )
    sums = MeanActivations(wiring.sets, layer, ids, chosen) if into is None else into
    if (sums.layer, sums.layers) != (layer, chosen) or not torch.equal(sums.ids, ids):
        raise ValueError(f"mean_attribution: `into` counts features of layer {sums.layer} and sources {sums.layers}")
    batches = corpus_features(
        wiring.lens,
        wiring.sets,
        [*chosen, layer],
        tokens,
        mask=mask,
        batch_size=batch_size,
        exclude_bos=exclude_bos,
        passed=sums.n_prompts,
        verbose=verbose,
        what="mean attributions",
    )
    for n_prompts, acts in batches:
        sums.add(acts)
        sums.n_prompts += n_prompts
    tables = {source: pullback(model, sets, (layer, ids), source, strict=strict) for source in chosen}
    pullbacks = {source: table.values.double() for source, table in tables.items()}
    return MeanAttribution([f"{layer}_{i}" for i in ids.tolist()], pullbacks, sums)
