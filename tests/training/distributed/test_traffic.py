"""What really travels between two processes, beside the formula."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from pullback.training.plan import Dictionary, costs
from tests.training.conftest import D_MODEL, N_LAYERS, ToyLens
from tests.training.distributed.test_equality import SETTINGS, run

BATCH, N_STEPS = 120, 12


def received(parallel, cross_layer):
    """Bytes that come in for rows, and inside steps, of a run in which every token that is read is trained on."""
    counted = {"rows": 0.0, "exchange": 0.0}
    originals = dist.all_reduce, dist.all_gather, dist.broadcast, dist.batch_isend_irecv
    me, size = dist.get_rank(), dist.get_world_size()

    def size_of(tensor):
        return tensor.numel() * tensor.element_size() if tensor.is_floating_point() and tensor.ndim else 0

    def all_reduce(tensor, *args, **kwargs):
        counted["exchange"] += size_of(tensor) * 2 * (size - 1) / size
        return originals[0](tensor, *args, **kwargs)

    def all_gather(every, own, *args, **kwargs):
        # Ids travel with values when tokens are divided.
        counted["exchange"] += (size - 1) * own.numel() * own.element_size() if own.ndim == 2 else 0
        return originals[1](every, own, *args, **kwargs)

    def broadcast(tensor, source, *args, **kwargs):
        counted["rows"] += size_of(tensor) if source != me and tensor.shape == (BATCH, D_MODEL) else 0
        return originals[2](tensor, source, *args, **kwargs)

    def batch_isend_irecv(work):
        counted["rows"] += sum(size_of(one.tensor) for one in work if one.op is dist.irecv)
        return originals[3](work)

    dist.all_reduce, dist.all_gather, dist.broadcast, dist.batch_isend_irecv = (
        all_reduce, all_gather, broadcast, batch_isend_irecv,
    )  # fmt: skip
    original = ToyLens.mlp_io
    read = []
    ToyLens.mlp_io = lambda self, tokens, *args: read.append(tokens.numel()) or original(self, tokens, *args)
    try:
        run(
            parallel, d_sae=48, training_tokens=BATCH * N_STEPS, train_batch_size_tokens=BATCH, dtype="float32",
            n_batches_in_buffer=1, store_batch_size_prompts=12, dead_feature_window=10**6, cross_layer=cross_layer,
        )  # fmt: skip
    finally:
        dist.all_reduce, dist.all_gather, dist.broadcast, dist.batch_isend_irecv = originals
        ToyLens.mlp_io = original
    return counted | {"read": sum(read)}


@pytest.mark.parametrize(
    ("parallel", "cross_layer"),
    [("layers", False), ("features", False), ("data", False), ("features", True), ("data", True)],
)
def test_what_is_received(two, parallel, cross_layer):
    first, second = two(received, parallel, cross_layer)
    dictionary = Dictionary(N_LAYERS, D_MODEL, 48, SETTINGS["k"], cross_layer)
    said = costs(dictionary, batch=BATCH, processes=2, parallel=parallel, row_itemsize=4)
    assert first["read"] == second["read"] == BATCH * N_STEPS / 2
    assert first["rows"] == second["rows"] == pytest.approx(said.rows * N_STEPS)
    assert first["exchange"] == second["exchange"] == pytest.approx(said.exchange * N_STEPS)
