"""Cards in the field's form: a dict for each feature of a layer (FORMATS.md e)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pullback.interpret.features.best import Kept
from pullback.interpret.features.layer import LayerActivity

TOP = "Top activations"
INTERVAL = "Subsample interval {}"
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


class Corpus(NamedTuple):
    """What was read."""

    numbers: Tensor  # (n), of the contexts that were kept, ascending
    tokens: Tensor  # (n, T) int32, -1 where there is none
    n_tokens: int
    """that counted"""
    words: list[str]
    """of the vocabulary"""


def feature_record(activity: LayerActivity, row: int, corpus: Corpus, n_quantiles: int) -> dict[str, Any]:
    """What was seen of the feature in a row of `activity`."""
    active = int(activity.active[row])
    counts = activity.histograms.counts[row]
    width = float(activity.histograms.widths[row])
    last = int(counts.nonzero().max()) + 1 if bool(counts.any()) else 0
    top = shown_examples(activity.top.kept(row), activity.window, corpus)
    sample = shown_examples(activity.sample.kept(row), activity.window, corpus)
    return {
        "examples_quantiles": [{"quantile_name": TOP, "examples": top}, *_intervals(sample, n_quantiles)],
        "act_min": float(activity.smallest[row]) if active else 0.0,
        "act_max": float(activity.largest[row]) if active else 0.0,
        "quantile_values": _quantiles(counts[:last], width),
        "histogram": counts[:last].tolist(),
        "histogram_max": last * width,
        "activation_frequency": active / corpus.n_tokens,
    }


def shown_examples(kept: Kept, window: tuple[int, int], corpus: Corpus) -> list[dict[str, Any]]:
    """As they stand in a record, the strongest first."""
    contexts, positions, _, around, _ = kept.strongest_first()
    left, right = window
    places = positions[:, None] + torch.arange(-left, right + 1)
    inside = (places >= 0) & (places < corpus.tokens.shape[1])
    rows = torch.searchsorted(corpus.numbers, contexts)
    tokens = corpus.tokens[rows[:, None], places.clamp(0, corpus.tokens.shape[1] - 1)].where(inside, -1)
    examples = []
    for ids, acts in zip(tokens.tolist(), around.tolist(), strict=True):
        shown = [(corpus.words[token], round(act, 4)) for token, act in zip(ids, acts, strict=True) if token >= 0]
        examples.append(
            {
                "tokens": [word for word, _ in shown],
                "tokens_acts_list": [act for _, act in shown],
                "train_token_ind": sum(token >= 0 for token in ids[:left]),
                "is_repeated_datapoint": False,
            }
        )
    return examples


def _intervals(examples: list[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """A uniform sample, sorted, in n parts of equal share."""
    cuts = [-(-i * len(examples) // n) for i in range(n + 1)]
    return [
        {"quantile_name": INTERVAL.format(i), "examples": examples[cuts[i] : cuts[i + 1]]}
        for i in range(n)
        if cuts[i] < cuts[i + 1]
    ]


def _quantiles(counts: Tensor, width: float) -> list[float]:
    """Activations that the shares QUANTILES of all active tokens stay under, to a bin of the histogram."""
    if len(counts) == 0:
        return []
    shares = counts.cumsum(0).double() / counts.sum()
    return [(int(torch.searchsorted(shares, share)) + 1) * width for share in QUANTILES]
