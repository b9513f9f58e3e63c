"""Greater-than by the published protocol: on a toy whose transcoder is exact, and on a look-alike of GPT-2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pullback as pb
from pullback.studies import GreaterThan, Years, reference, thresholds, year_curve
from pullback.zoo.exact import exact_transcoders
from tests import models

N_YEARS = 30


@pytest.fixture(scope="module")
def toy() -> tuple[pb.Lens, pb.TranscoderSet, Years]:
    """Two layers that are told a number y in 0..29, then a word, and learn to say any larger one."""
    config = {"n_layers": 2, "d_model": 32, "d_head": 16, "n_heads": 2, "d_mlp": 64, "d_vocab": N_YEARS + 1}
    model = models.native(0, torch.float32, **config, act_fn="relu", n_ctx=4, normalization_type="LNPre")
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.3)
    y = torch.arange(N_YEARS)
    tokens = torch.stack([y, torch.full_like(y, N_YEARS)], 1)
    later = (y[None] > y[:, None]).float()
    wanted = (later / later.sum(1, keepdim=True).clamp(min=1))[:-1]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        loss = -(model(tokens[:-1])[:, -1, :N_YEARS].log_softmax(-1) * wanted).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    lens = pb.as_lens(model.requires_grad_(False))
    return lens, exact_transcoders(lens), Years(tokens, y, y, [f"{n:02d}" for n in range(N_YEARS)])


def test_an_exact_transcoder_gives_the_model_with_all_and_the_neurons_curve_throughout(toy) -> None:
    lens, sets, years = toy
    for layer in (0, 1):
        curve = year_curve(lens, sets, years, layer)
        assert curve.original > 0.9, "the toy has learned it"
        assert curve.full == pytest.approx(curve.original, abs=1e-5)
        assert curve.features[-1] == pytest.approx(curve.original, abs=1e-5)
        assert len(curve.features) == len(curve.neurons) == 65
        assert curve.every_neuron == pytest.approx(curve.original, abs=1e-5)
        torch.testing.assert_close(torch.tensor(curve.features), torch.tensor(curve.neurons), atol=1e-4, rtol=0)


def test_what_features_read_and_say_crosses(toy) -> None:
    """A feature that is given more by late years says later ones, and the other way round."""
    lens, sets, years = toy
    curve = year_curve(lens, sets, years, 1, most=0, without=0)
    found = thresholds(lens, sets, years, 1, curve.ranking[:8])
    assert all(len(one.dla) == len(one.deembedding) == N_YEARS for one in found)
    crossing = 0
    for one in found:
        read, said = ((v - v.mean()) for v in (torch.tensor(one.deembedding), torch.tensor(one.dla)))
        crossing += bool(((read - said)[:-1] * (read - said)[1:] < 0).any())
    assert crossing >= 6


def test_differences_of_probabilities_by_hand() -> None:
    years = Years(torch.zeros(1, 2).long(), torch.tensor([3, 1, 2]), torch.tensor([1]), ["00", "01", "02"])
    logits = torch.tensor([[9.0, 0.0, 1.0, -1.0]])  # the first is no year
    p = torch.tensor([-1.0, 0.0, 1.0]).softmax(0)
    torch.testing.assert_close(years.difference(logits), (p[2] - p[0] - p[1])[None])


def gpt2_of_years(folder: Path) -> None:
    """A small GPT-2 with random weights whose tokenizer splits 1732 as GPT-2's does."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = ["<|endoftext|>", "The", " war", " lasted", " from", " to", "the"]
    words += [f" {c}" for c in range(11, 20)] + [f"{y:02d}" for y in range(100)]
    backend = Tokenizer(kinds.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<|endoftext|>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+| \d\d|\d\d"), "isolated")
    special = {name: "<|endoftext|>" for name in ("bos_token", "eos_token", "unk_token")}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(words), n_embd=16, n_layer=2, n_head=2, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(folder)


def transcoder_circuits_file(path: Path, layer: int) -> None:
    config = {"d_in": 16, "d_out": 16, "is_transcoder": True, "hook_point": f"blocks.{layer}.ln2.hook_normalized"}
    config |= {"out_hook_point": f"blocks.{layer}.hook_mlp_out", "hook_point_layer": layer}
    shapes = {"W_enc": (16, 40), "b_enc": (40,), "W_dec": (40, 16), "b_dec": (16,), "b_dec_out": (16,)}
    torch.save({"cfg": config, "state_dict": {name: torch.randn(shape) for name, shape in shapes.items()}}, path)


def test_a_look_alike_of_gpt2_and_its_published_files_goes_through(tmp_path: Path) -> None:
    from pullback.lens import open_transformers

    gpt2_of_years(tmp_path / "gpt2")
    (tmp_path / "tc").mkdir()
    for layer in (0, 1):
        transcoder_circuits_file(tmp_path / "tc" / f"{layer}.pt", layer)
    model = open_transformers(str(tmp_path / "gpt2"))
    model.enable_compatibility_mode(disable_warnings=True)  # the norms' weights are folded, as in the published code
    lens, sets = pb.as_lens(model), pb.load_transcoders(tmp_path / "tc")
    years = GreaterThan(lens).prompts()
    assert len(years.names) == 100
    assert lens.to_str_tokens(years.tokens[32])[-4:] == [" 17", "32", " to", " 17"]
    curve = year_curve(lens, sets, years, 1)
    assert len(curve.features) == 41
    assert len(curve.neurons) == 65
    assert curve.features[40] == pytest.approx(curve.full, abs=1e-6)
    assert curve.every_neuron == pytest.approx(curve.original, abs=1e-6)
    assert len(thresholds(lens, sets, years, 1, curve.ranking[:2])[0].dla) == 100


def test_published_figures_are_told_from_others_by_size() -> None:
    assert reference.is_published("openai-community/gpt2", 12, 768, 24576)
    assert not reference.is_published("gpt2", 12, 768, 1024)
    rows = reference.beside({"with all features of MLP 10": 0.8})
    assert ("with all features of MLP 10", 0.79780, 0.8) in rows
    assert len(rows) == len(reference.GREATER_THAN)
