"""From tokens to batches: every kind of source."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
import torch

from pullback.training import Documents, TokenFile, TrainConfig, train
from pullback.training.source import is_packed, token_batches

IDS = torch.arange(12).view(4, 3)
MASK = torch.tensor([[True, True, False]] * 4)


def kept(batches):
    """The tokens that count, batch by batch."""
    return [ids[mask].tolist() for ids, mask in batches]


def test_a_tensor_is_cut_into_batches_in_order(lens):
    assert kept(token_batches(lens, IDS, batch_size=3)) == [list(range(9)), [9, 10, 11]]
    assert kept(token_batches(lens, IDS[0], batch_size=3)) == [[0, 1, 2]]
    assert kept(token_batches(lens, IDS, batch_size=4, mask=MASK)) == [[0, 1, 3, 4, 6, 7, 9, 10]]
    assert kept(token_batches(lens, IDS, batch_size=4, context_size=1)) == [[0, 3, 6, 9]]


def test_strings_and_token_lists_are_padded_and_the_padding_is_masked(lens):
    ids = [[97 % 20], [98 % 20, 99 % 20, 100 % 20]]
    for source in (["a", "bcd"], ids, [np.array(prompt) for prompt in ids], [list(np.array(prompt)) for prompt in ids]):
        ((ids, mask),) = token_batches(lens, source, batch_size=2)
        assert ids.shape == (2, 3)
        assert mask.tolist() == [[True, False, False], [True, True, True]]
        assert ids[mask].tolist() == [17, 18, 19, 0]
    assert kept(token_batches(lens, "bcd", batch_size=2)) == [[18, 19, 0]]


BATCHES = [(IDS[:2], MASK[:2]), IDS[2:]]
BATCHES_KEPT = [[0, 1, 3, 4], [6, 7, 8, 9, 10, 11]]


@pytest.mark.parametrize(
    "source",
    [BATCHES, tuple(BATCHES), iter(BATCHES), lambda: iter(BATCHES)],
    ids=["list", "tuple", "iterator", "function"],
)
def test_batches_are_taken_as_they_come(lens, source):
    assert kept(token_batches(lens, source, batch_size=99)) == BATCHES_KEPT


def test_a_pair_is_one_batch_and_a_function_may_return_one(lens):
    assert kept(token_batches(lens, (IDS, MASK), batch_size=4)) == [[0, 1, 3, 4, 6, 7, 9, 10]]
    for made in (IDS, (IDS, MASK)):
        assert len(kept(islice(token_batches(lens, lambda made=made: made, batch_size=4, repeat=True), 5))) == 5


def test_repeating_reshuffles_prompts_and_restarts_lists_but_not_iterators(lens):
    g = torch.Generator().manual_seed(0)
    epochs = [
        [
            row
            for batch in islice(token_batches(lens, IDS, batch_size=2, generator=g, repeat=True), 6)
            for row in batch[0].tolist()
        ]
    ][0]
    assert all(sorted(epochs[i : i + 4]) == IDS.tolist() for i in (0, 4, 8))
    assert len({str(epochs[i : i + 4]) for i in (0, 4, 8)}) > 1
    assert kept(islice(token_batches(lens, BATCHES, batch_size=1, repeat=True), 4)) == BATCHES_KEPT * 2
    assert kept(islice(token_batches(lens, lambda: iter(BATCHES), batch_size=1, repeat=True), 4)) == BATCHES_KEPT * 2
    assert kept(token_batches(lens, iter(BATCHES), batch_size=1, repeat=True)) == BATCHES_KEPT
    assert kept(token_batches(lens, iter([]), batch_size=1, repeat=True)) == []
    assert kept(token_batches(lens, lambda: iter([]), batch_size=1, repeat=True)) == []


@pytest.mark.parametrize(
    ("source", "mask", "sentence"),
    [
        ([], None, "empty list"),
        (IDS.float(), None, "tokens must be integers"),
        (IDS[:0], None, "at least one token"),
        (IDS[None], None, "tokens must be integers"),
        (IDS, MASK[:2], r"mask must be torch.bool \[4, 3\] like the tokens, got torch.bool \[2, 3\]"),
        (IDS, MASK.long(), "got torch.int64"),
        (["ab"], MASK, "masked by its own lengths"),
        (BATCHES, MASK, "batches bring theirs"),
        (7, None, "got int"),
        ([1, 2, 3], None, r"a batch must be a tensor \(B, T\) or a pair.*, got int; prompts come as"),
        ({"input_ids": IDS}, None, "got str; prompts come as"),
        (iter(["ab", "cd"]), None, "got str; prompts come as"),
    ],
)
def test_what_cannot_be_read_is_refused(lens, source, mask, sentence):
    with pytest.raises(ValueError, match=sentence):
        list(token_batches(lens, source, batch_size=2, mask=mask))


def test_a_file_of_tokens_is_mapped_and_read_by_the_prompt(lens, tmp_path):
    np.save(tmp_path / "ids.npy", IDS.numpy().astype(np.uint16))
    IDS.numpy().astype(np.int32).tofile(tmp_path / "ids.bin")
    beside = tmp_path / "beside.bin"
    IDS.numpy().astype(np.uint16).tofile(beside)
    (tmp_path / "beside.bin.json").write_text(json.dumps({"dtype": "uint16", "shape": [4, 3]}))
    for source in (
        tmp_path / "ids.npy",
        TokenFile(tmp_path / "ids.npy"),
        TokenFile(tmp_path / "ids.bin", dtype="int32", shape=(4, 3)),
        beside,
        IDS.numpy().astype(np.uint8),
    ):
        assert kept(token_batches(lens, source, batch_size=3)) == [list(range(9)), [9, 10, 11]]
    assert isinstance(TokenFile(beside).array, np.memmap)
    assert isinstance(TokenFile(tmp_path / "ids.npy").array, np.memmap)
    row = TokenFile(tmp_path / "ids.bin", dtype="int32")
    batches = list(token_batches(lens, row, batch_size=2, context_size=5))
    assert [ids.tolist() for ids, _ in batches] == [[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]]
    assert kept(islice(token_batches(lens, row, batch_size=2, context_size=5, repeat=True), 2)) == [list(range(10))] * 2


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        (b"12345", {"dtype": "uint16"}, "has 5 bytes, and uint16 numbers would take 4"),
        (b"1234", {"dtype": "uint16", "shape": (3,)}, r"uint16 \[3\] would take 6"),
        (b"1234", {}, "give dtype="),
        (b"1234", {"dtype": "uint17"}, "unknown dtype 'uint17'"),
        (b"1234", {"dtype": "float32"}, "must hold integers"),
        (b"", {"dtype": "uint16"}, "at least one"),
    ],
)
def test_files_that_do_not_fit_are_refused(lens, tmp_path, content, options, sentence):
    (tmp_path / "ids.bin").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        TokenFile(tmp_path / "ids.bin", **options)


def test_a_long_row_needs_a_context_size_that_fits(lens, tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(6))
    with pytest.raises(ValueError, match="give context_size"):
        next(token_batches(lens, tmp_path / "ids.npy", batch_size=2))
    with pytest.raises(ValueError, match="has 6 tokens, fewer than context_size=7"):
        next(token_batches(lens, tmp_path / "ids.npy", batch_size=2, context_size=7))
    (tmp_path / "ids.npy").write_bytes(b"no numbers")
    with pytest.raises(ValueError, match=r"is no \.npy file"):
        TokenFile(tmp_path / "ids.npy")


class Fake:
    """A dataset as the package `datasets` makes them: rows by number, or only one after the other."""

    def __init__(self, rows):
        self.rows, self.column_names, self.epochs, self.read = rows, list(rows[0]), [], 0

    def __iter__(self):
        for row in self.rows:
            self.read += 1
            yield row

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


class FakeMap(Fake):
    set_epoch = property()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


TEXTS = [{"id": i, "text": text} for i, text in enumerate(["ab", "c", " ", "defgh"])]
PACKED = [17, 18, 19, 0, 1, 2, 3, 4]


def packed(lens, source, batch_size=2, context_size=3, **options):
    return list(token_batches(lens, source, batch_size=batch_size, context_size=context_size, **options))


def test_documents_are_packed_into_contexts_and_the_end_is_masked(lens):
    for source in (Fake(TEXTS), FakeMap(TEXTS), Documents(iter(TEXTS)), Documents([row["text"] for row in TEXTS])):
        batches = packed(lens, source)
        assert [ids.tolist() for ids, _ in batches] == [[PACKED[:3], PACKED[3:6]], [[3, 4, 4]]]
        assert kept(batches) == [PACKED[:6], PACKED[6:]]
        assert is_packed(source)
    assert not is_packed(IDS)


def test_each_document_begins_with_bos_where_the_model_says_so(lens):
    lens.model.tokenizer.bos_token_id = 9
    assert kept(packed(lens, Fake(TEXTS), 9, 11)) == [[9, 17, 18, 9, 19, 9, 0, 1, 2, 3, 4]]
    ids = [{"input_ids": [1, 2]}, {"input_ids": [9, 3]}]
    assert kept(packed(lens, Fake(ids))) == [[1, 2, 9, 3]]
    assert kept(packed(lens, Documents(Fake(ids), prepend_bos=True))) == [[9, 1, 2, 9, 3]]
    assert kept(packed(lens, Documents(Fake(ids), prepend_bos=False))) == [[1, 2, 3]]
    lens.model.tokenizer.bos_token_id = None
    with pytest.raises(ValueError, match="needs a tokenizer that knows a BOS"):
        packed(lens, Documents(Fake(ids), prepend_bos=True))


def test_tokens_that_a_dataset_hides_are_dropped(lens):
    rows = [{"tokens": np.array([1, 2, 0]), "attention_mask": [1, 1, 0]}, {"tokens": torch.tensor([5, 6])}]
    assert kept(packed(lens, Fake(rows))) == [[1, 2, 5, 6]]


def test_a_stream_is_read_no_further_than_needed_and_again_from_the_start(lens):
    source = Fake([{"text": "abcdef"}] * 1000)
    batches = token_batches(lens, source, batch_size=2, context_size=6, repeat=True)
    for _ in range(3):
        next(batches)
    assert source.read == 6
    assert len(list(islice(batches, 1500))) == 1500
    assert source.epochs == [0, 1, 2, 3]
    once = token_batches(lens, Documents(iter(TEXTS)), batch_size=2, context_size=3, repeat=True)
    assert len(list(once)) == 2


def test_rows_that_can_be_had_by_number_are_shuffled_by_seed(lens):
    source = FakeMap([{"text": chr(97 + i)} for i in range(20)])

    def order(seed):
        generator = torch.Generator().manual_seed(seed)
        return kept(packed(lens, source, 4, 10, generator=generator))[0]

    assert order(0) == order(0) != order(1)
    assert sorted(order(0)) == list(range(20))


def test_text_and_jsonl_files_hold_a_document_a_line(lens, tmp_path):
    text, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    text.write_text("ab\n\nc\ndefgh\n")
    lines.write_text("".join(json.dumps(row) + "\n" for row in TEXTS))
    for source in (text, lines, Documents(str(lines), column="text")):
        assert kept(packed(lens, source)) == [PACKED[:6], PACKED[6:]]
    lines.write_text('{"text": "ab"}\n{"text": ')
    with pytest.raises(ValueError, match="line 2 is no JSON"):
        packed(lens, lines)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (lambda tmp: Documents([{"body": "ab"}]), "no column input_ids or tokens or text or content, they have body"),
        (lambda tmp: Documents([{"text": "ab"}], column="body"), "no column body, they have text"),
        (lambda tmp: Documents([1.5]), "must be a text or a list of token ids"),
        (lambda tmp: Documents([{"tokens": [0.5]}]), "got torch.float64"),
        (lambda tmp: tmp / "a.csv", r"documents in \.txt and \.jsonl"),
    ],
)
def test_documents_that_cannot_be_read_are_refused(lens, tmp_path, source, sentence):
    with pytest.raises(ValueError, match=sentence):
        packed(lens, source(tmp_path))


def test_splits_and_missing_files_are_refused(lens, tmp_path):
    splits = type("Splits", (dict,), {"column_names": {"train": ["text"]}})(train=1, test=2)
    with pytest.raises(ValueError, match="splits train, test"):
        packed(lens, splits)
    for name in ("a.txt", "a.npy"):
        with pytest.raises(FileNotFoundError, match=name):
            packed(lens, tmp_path / name)


def test_a_bos_inside_a_packed_context_is_not_trained_on(lens, monkeypatch):
    from pullback.training import TrainStep

    used = []
    original = TrainStep.__call__
    monkeypatch.setattr(TrainStep, "__call__", lambda self, x, y: (used.append(x), original(self, x, y))[1])
    lens.model.tokenizer.bos_token_id = 9
    config = TrainConfig(d_sae=16, k=4, training_tokens=100, train_batch_size_tokens=20, layers=[0], context_size=5)
    train(lens, Fake(TEXTS), config, verbose=False)
    rows = {tuple(row) for row in torch.cat(used).tolist()}
    assert rows == {tuple(row) for row in lens.W_E[PACKED].tolist()}


@pytest.mark.parametrize("size", ["batch_size", "context_size"])
def test_sizes_below_one_are_refused(lens, size):
    with pytest.raises(ValueError, match=f"{size} must be at least 1, got 0"):
        list(token_batches(lens, IDS, **{"batch_size": 2, size: 0}))
