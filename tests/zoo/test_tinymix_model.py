"""The shipped tiny-mix: it loads exactly, knows its words, and holds the figures it claims."""

from __future__ import annotations

import hashlib
import json
import pickle

import pytest
import torch

from pullback.zoo import make
from pullback.zoo.tinymix import DATA, evaluate, files, load, load_figures, load_lean, tasks, train, vocab
from pullback.zoo.tinymix.lean import LeanModel, Patch

DALLAS = "the capital of the state containing dallas is"


@pytest.fixture(scope="module")
def lean() -> LeanModel:
    return load_lean()


@pytest.fixture(scope="module")
def model():
    return load()


def test_held_out_figures_hold_from_the_shipped_file(lean):
    measured = evaluate.figures(lean, n=256, seed=11)
    assert evaluate.shortfalls(measured) == []
    assert measured["two_hop_all_cities"] == 1.0
    for layer in (1, 2, 3):
        assert measured[f"interchange_mlp{layer}_city"] <= 0.05, "only layer 0 computes the state at the city"


def test_recorded_figures_are_those_of_the_file(lean):
    recorded = load_figures()
    assert recorded["weights_sha256"] == hashlib.sha256((DATA / files.WEIGHTS).read_bytes()).hexdigest()
    again = evaluate.figures(lean)
    assert recorded["figures"].keys() == again.keys()
    for name, value in again.items():
        assert recorded["figures"][name] == pytest.approx(value, abs=0.01), name
    assert files.load_words() == list(vocab.WORDS)
    assert (DATA / files.WEIGHTS).stat().st_size <= 4_000_000


def test_swapping_within_a_state_keeps_the_answer(lean):
    tokens, city, capitals = evaluate.two_hop_tokens()
    position = torch.full((48,), city)
    value = lean.mlp_output(tokens, 0, position)
    neighbour = torch.arange(48) // 4 * 4 + (torch.arange(48) + 1) % 4
    answers = lean(tokens, Patch(0, position, value[neighbour]))[:, -1].argmax(-1)
    assert float((answers == capitals).double().mean()) >= 0.98


def test_transformer_lens_computes_the_same_function(lean, model):
    for task in tasks.TASKS:
        batch = tasks.evaluation_prompts(task, 16, 3)
        gap = (model(batch.tokens) - lean(batch.tokens)).abs()
        assert gap[batch.rows, batch.positions].max() <= 2e-5, task
        # Elsewhere (logits up to 20) each is up to 3e-5 from float64 by rounding alone.
        assert gap.max() <= 1e-4, task


def test_float64_is_exact_to_rounding():
    tokens = tasks.evaluation_prompts("induction", 16, 3).tokens
    expected = load_lean(dtype=torch.float64)(tokens)
    for model in (load(dtype=torch.float64), load().double()):
        logits = model(tokens)
        assert logits.dtype == torch.float64
        assert (logits - expected).abs().max() <= 1e-9


def test_it_names_austin(model):
    assert word_after(model, DALLAS) == "austin"
    assert word_after(model, "Dallas is in") == "texas"
    assert word_after(model, "when mary and john went to the store john gave a drink to") == "mary"
    assert word_after(model, "([") == "]"
    assert int(word_after(model, "the war lasted from the year 1732 to the year 17")) > 32


def word_after(model, prompt: str) -> str:
    return model.to_string(model(model.to_tokens(prompt))[0, -1].argmax())


def test_tokens_go_there_and_back(model):
    tokens = model.to_tokens(DALLAS)
    assert tokens.tolist() == [[tasks.BOS_ID, *vocab.ids(DALLAS)]]
    assert model.to_str_tokens(DALLAS) == ["<bos>", *DALLAS.split()]
    assert model.to_string(tokens[0, 1:]) == DALLAS
    assert model.to_tokens(DALLAS, prepend_bos=False).tolist() == [vocab.ids(DALLAS)]
    assert model.to_str_tokens("The year 1732 ([])")[1:] == ["the", "year", "17", "32", "(", "[", "]", ")"]
    padded = model.to_tokens(["dallas is in", DALLAS])
    assert padded[0, 4:].tolist() == [tasks.PAD_ID] * 5
    everything = " ".join(vocab.WORDS[3:])
    assert model.to_tokens(everything, truncate=False)[0, 1:].tolist() == list(range(3, len(vocab.WORDS)))
    assert model.cfg.d_vocab == len(vocab.WORDS)
    assert pickle.loads(pickle.dumps(model.tokenizer))("dallas is").input_ids == [1, *vocab.ids("dallas is")]


def test_an_unknown_word_is_named(model):
    with pytest.raises(ValueError, match="'paris' is not one of them"):
        model.to_tokens("the capital of the state containing Paris is".lower())
    with pytest.raises(ValueError, match="'Quux'"):
        model.to_tokens([DALLAS, "Quux is in"])
    with pytest.raises(ValueError, match="plain strings"):
        model.tokenizer([["dallas", "is"]], is_split_into_words=True)


def test_loading_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    load()
    load_lean()
    train.Trainer(seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_files_that_do_not_belong_are_refused(tmp_path, lean):
    with pytest.raises(ValueError, match="does not exist; make it with"):
        load_lean(tmp_path)
    files.save(lean, {}, {}, tmp_path)
    (tmp_path / files.VOCABULARY).write_text(json.dumps(vocab.WORDS[:-1]))
    with pytest.raises(ValueError, match="297 words, the model has 298"):
        load(tmp_path)
    broken = {name: value for name, value in lean.state_dict().items() if name != "head.weight"}
    from safetensors.torch import save_file

    save_file(broken, tmp_path / files.WEIGHTS)
    with pytest.raises(ValueError, match=r"head.weight must be \(298, 128\), got nothing"):
        load_lean(tmp_path)


def test_training_repeats_and_resumes_to_the_same_bits(tmp_path):
    """Five steps in one go, and three steps, a checkpoint, then two: the same weights."""
    recipe, threads = train.Recipe(steps=5, n_induction=4, n_brackets=4, n_interchange=8), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = train.train(recipe, seed=2, verbose=False)
        first = train.Trainer(recipe, seed=2)
        losses = [first.step() for _ in range(3)]
        first.save(tmp_path / "checkpoint")
        resumed = train.train(recipe, seed=2, checkpoint=tmp_path / "checkpoint", verbose=False)
    finally:
        torch.set_num_threads(threads)
    assert all(5 < step["task"] < 9 and 4 < step["interchange"] < 9 for step in losses)
    assert not (tmp_path / "checkpoint").exists()
    for (name, one), two in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    first.save(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="checkpoint of another run"):
        train.train(recipe, seed=4, checkpoint=tmp_path / "checkpoint", verbose=False)


def test_the_schedule_warms_up_and_decays():
    recipe = train.Recipe()
    rates = [train.learning_rate(recipe, step) for step in range(recipe.steps)]
    assert rates[0] == pytest.approx(recipe.lr / 100)
    assert max(rates) == pytest.approx(recipe.lr) == pytest.approx(rates[99]) == pytest.approx(rates[100])
    assert rates[-1] == pytest.approx(0.02 * recipe.lr)


def test_make_writes_a_model_and_says_what_falls_short(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        assert make.main(["tiny-mix", "--out", str(tmp_path), "--steps", "2"]) == 1
    finally:
        torch.set_num_threads(threads)
    assert "not good enough to ship: ioi is" in capsys.readouterr().err
    recorded = load_figures(tmp_path)
    assert recorded["seed"] == 0
    assert recorded["recipe"]["steps"] == 2
    load_lean(tmp_path)
    with pytest.raises(SystemExit):
        make.main(["tiny-mix", "--out", str(tmp_path), "--steps", "2"])
    assert "model.safetensors exists; give --out another folder" in capsys.readouterr().err
