"""What a run costs, by formula: memory, arithmetic and network of each of its processes.

N tokens a step, L layers of width d, F features a layer of which k are active on a token, b bytes a number. A
cross-layer transcoder has L (L + 1) / 2 decoders, a set of per-layer ones L. docs/SCALE.md has tables of it, and how
far measured runs are from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

ADAM_COPIES = 3  # the weight and its two moments
SHADOW_BYTES = 2  # of an encoder weight in float32: its 16-bit operand


class Dictionary(NamedTuple):
    """Transcoders of all layers of a model."""

    n_layers: int
    d_model: int
    d_sae: int
    k: int
    cross_layer: bool = False

    @property
    def n_decoders(self) -> int:
        return self.n_layers * (self.n_layers + 1) // 2 if self.cross_layer else self.n_layers

    @property
    def encoder_weights(self) -> int:
        return self.n_layers * self.d_sae * self.d_model

    @property
    def weights(self) -> int:
        biases = self.n_layers * (self.d_sae + self.d_model)
        return self.encoder_weights + self.n_decoders * self.d_sae * self.d_model + biases


class Model(NamedTuple):
    """A language model."""

    n_layers: int
    d_model: int
    parameters: float
    """as it is run: every one multiplies each token once"""


MODELS = {
    "gpt2-small": Model(12, 768, 85e6),  # without embeddings, which are looked up
    "gemma-2-2b": Model(26, 2304, 2.0e9),
    "llama-3.1-8b": Model(32, 4096, 7.0e9),
    "llama-3.1-70b": Model(80, 8192, 68.5e9),
}


class Machine(NamedTuple):
    """What one process computes and moves in a second, sustained."""

    flops: float
    bandwidth: float
    """of memory, bytes"""
    link: float
    """to the other processes, bytes"""


H100 = Machine(400e12, 2.7e12, 300e9)


class Costs(NamedTuple):
    """Of one process, the busiest one."""

    trained: float
    """bytes of weights and of what the optimizer keeps"""
    buffer: float
    """bytes of the rows that are mixed"""
    flops: float
    """of a step: its part of the model's forward passes and of the dictionary"""
    traffic: float
    """bytes of weights and moments read and written in a step"""
    rows: float
    """bytes of activations received in a step"""
    exchange: float
    """bytes received inside the step: candidates and partial sums"""

    @property
    def memory(self) -> float:
        return self.trained + self.buffer

    def seconds(self, machine: Machine = H100) -> float:
        """At least this long takes a step in which nothing overlaps."""
        sent = (self.rows + self.exchange) / machine.link
        return self.flops / machine.flops + self.traffic / machine.bandwidth + sent


def trained_bytes(encoder: float, others: float, itemsize: int = 4) -> float:
    """Of so many weights of encoders, and so many others."""
    return ADAM_COPIES * itemsize * (encoder + others) + (SHADOW_BYTES * encoder if itemsize == 4 else 0)


def buffer_bytes(row: float, held_tokens: float, itemsize: int = 4) -> float:
    """Of so many tokens that wait to be used, with a row of so many numbers each."""
    return row * itemsize * held_tokens


def costs(
    dictionary: Dictionary,
    parameters: float = 0.0,
    *,
    batch: int = 4096,
    buffer_batches: int = 8,
    processes: int = 1,
    parallel: str | Sequence[int] = "layers",
    itemsize: int = 4,
    row_itemsize: int = 2,
) -> Costs:
    """Of one step of `batch` tokens.

    Args:
        parameters: of the model that is run; 0 for cached activations.
        buffer_batches: see `TrainConfig.n_batches_in_buffer`.
        processes, parallel: how many, and how they divide the work, see TrainConfig.
        itemsize: bytes of a trained number.
        row_itemsize: bytes of a number as the model has it, and as it travels.
    """
    L, d, F, k, N, R = *dictionary[:4], batch, processes
    if isinstance(parallel, str):
        layers, columns = (R, 1) if parallel == "layers" else (1, R)
    else:
        layers, columns = parallel
    copied = parallel == "data"
    row_share = math.ceil(L / layers) / L  # of the layers, in one process
    share = row_share * (1 if copied else math.ceil(F / columns) / F)  # of all weights
    encoder, others = dictionary.encoder_weights, dictionary.weights - dictionary.encoder_weights
    row = 2 * L * d * row_share
    sparse = k * d * (6 * dictionary.n_decoders + 2 * L)  # decode, its derivative, both gradients
    divided = 2 * encoder / R + sparse / R if not copied else 2 * encoder / R + sparse
    entries = L * row_share * N * k
    if copied:
        exchange = 8 * entries * (R - 1) / R
    else:
        sums = itemsize * N * L * row_share * d * 2 * (columns - 1) / columns
        exchange = itemsize * entries * (columns - 1) + sums
    return Costs(
        trained=trained_bytes(encoder * share, others * share, itemsize),
        buffer=buffer_bytes(row, N * buffer_batches, itemsize),
        flops=N * (2 * parameters / R + divided),
        traffic=2 * ADAM_COPIES * itemsize * dictionary.weights * share,
        rows=N * row * row_itemsize * (R - 1) / R,
        exchange=exchange,
    )
