"""The command line and `pb.train` under torchrun, on a real model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pullback import zoo
from pullback.cli import main
from pullback.transcoders import load_transcoders

ROOT = Path(__file__).parents[3]
OPTIONS = [
    "exact", "--context-size", "16", "--d-sae", "33", "--k", "4", "--training-tokens", "600",
    "--train-batch-size-tokens", "64",
]  # fmt: skip


@pytest.mark.slow
def test_torchrun_trains_what_one_process_trains(tmp_path):
    ids = torch.randint(zoo.load("exact").cfg.d_vocab, (2000,), generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "ids.npy", ids.numpy())
    options = ["train", *OPTIONS, "--data", str(tmp_path / "ids.npy")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    where = ["--out", str(tmp_path / "two"), "--checkpoint", str(tmp_path / "run"), "--parallel", "features"]
    ended = subprocess.run(
        [*torchrun, "pullback.cli", *options, *where],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("wrote") == 1
    assert ended.stdout.count("features on 600 tokens") == 1
    assert main([*options, "--out", str(tmp_path / "one")]) == 0
    one, two = load_transcoders(tmp_path / "one"), load_transcoders(tmp_path / "two")
    for layer in one:
        for a, b in zip(one[layer].parameters(), two[layer].parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
