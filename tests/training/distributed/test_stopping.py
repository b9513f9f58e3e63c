"""What one process meets, all are told; nobody waits."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from pullback.training import Adam, TrainConfig, TrainingDiverged, train
from pullback.transcoders import load_transcoders
from tests.training.conftest import ToyLens
from tests.training.distributed.conftest import Failed
from tests.training.distributed.test_equality import SETTINGS, prompts, run


def failing_model():
    """The second process runs out of memory in the model, prompt by prompt."""
    lens = ToyLens()
    if dist.get_rank() == 1:
        original = lens.run
        lens.run = lambda tokens: (
            original(tokens) if lens.forward_passes < 3 else _raise(MemoryError("out of memory: 7"))
        )
    return run("features", lens=lens)


def failing_step():
    """The second process fails inside a step, where the first one waits for it."""
    original = Adam.step
    if dist.get_rank() == 1:
        Adam.step = lambda self, *args: original(self, *args) if self.n_steps < 9 else _raise(MemoryError("no memory"))
    try:
        return run("features")
    finally:
        Adam.step = original


def _raise(error):
    raise error


def diverging(parallel, path, **settings):
    """The model overflows in its second layer."""
    lens = ToyLens(dtype=torch.float64)
    W_in, b_in, W_out, b_out = lens.mlps[1]

    def batches():
        for i in range(1000):
            if i == 20:
                lens.mlps[1] = (W_in, b_in, W_out * torch.nan, b_out)
            yield prompts()[:5]

    config = TrainConfig(**SETTINGS, parallel=parallel, **settings)
    with pytest.raises(TrainingDiverged) as failed:
        train(lens, batches(), config, verbose=False, output_path=path)
    return str(failed.value), failed.value.sets.layers


def other_prompts():
    return run("layers", tokens=prompts().roll(dist.get_rank(), 0))


def other_settings():
    return run("layers", lr=0.1 * (1 + dist.get_rank()))


def drifting(parallel, **settings):
    """A bit of the second process's copy of b_dec changes by itself."""
    original = Adam.step

    def step(self, *args):
        original(self, *args)
        if self.n_steps == 9:
            self.transcoder.b_dec[3] *= 1 + 1e-15

    if dist.get_rank() == 1:
        Adam.step = step
    try:
        return run(parallel, **settings)
    finally:
        Adam.step = original


def interrupted():
    """Ctrl-C, which reaches the second process while it reads prompts."""

    def batches():
        for i in range(1000):
            if i == 20 and dist.get_rank() == 1:
                raise KeyboardInterrupt
            yield prompts()[:5]

    return run("features", tokens=batches())


def few_prompts(n):
    sets = run("features", tokens=iter(prompts().split(5)[:n]))
    return [bool(weight.isfinite().all()) for weight in sets.values()]


def sentences(two, function, *args, **settings):
    with pytest.raises(Failed) as failed:
        two(function, *args, **settings)
    return [(kind, sentence) for kind, sentence, _ in failed.value.errors]


def test_an_error_in_the_model_is_everybodys(two):
    first, second = sentences(two, failing_model)
    assert first == second == ("MemoryError", "out of memory: 7")


def test_an_error_inside_a_step_ends_the_others(two):
    (kind, sentence), (own, _) = sentences(two, failing_step)
    assert (kind, own) == ("RuntimeError", "MemoryError")
    assert sentence.startswith("process 1 stopped: no memory")
    assert two(few_prompts, 4), "the processes go on to another run"


WAYS = ["layers", "features", "data", "cross-layer, features", "cross-layer, data"]


def way(said):
    """The arguments of `run`."""
    *cross_layer, parallel = said.split(", ")
    return {"parallel": parallel, "cross_layer": bool(cross_layer)}


@pytest.mark.parametrize("said", WAYS)
def test_all_diverge_in_the_same_words(two, tmp_path, said):
    (said, layers), second = two(diverging, path=tmp_path / "out", **way(said))
    assert said == second[0]
    assert "layer 1" in said
    assert layers == second[1] == [0, 1]
    assert load_transcoders(tmp_path / "out.unfinished").layers == [0, 1]


@pytest.mark.parametrize("said", WAYS[1:])
def test_copies_that_drift_are_noticed(two, said):
    first, second = sentences(two, drifting, **way(said))
    assert first == second
    assert "layer 0: the copies in processes [0, 1] have drifted apart" in first[1]


def test_different_prompts_or_settings_are_refused(two):
    first, second = sentences(two, other_prompts)
    assert first == second
    assert "read different prompts" in first[1]
    first, second = sentences(two, other_settings)
    assert first == second
    assert "(lr: 0.1, 0.2)" in first[1]


def test_ctrl_c_stops_all(two):
    assert sentences(two, interrupted) == [("KeyboardInterrupt", "")] * 2


@pytest.mark.parametrize("n", [1, 2, 3])
def test_all_run_out_of_prompts_together(two, n):
    assert two(few_prompts, n) == [[True] * 12] * 2
