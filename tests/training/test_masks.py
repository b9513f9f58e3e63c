"""Which tokens count: BOS, padding and special tokens do not."""

from __future__ import annotations

import pytest
import torch

from pullback.training.masks import Excluded, bos_id, without_bos, without_padding

ALL = torch.ones(2, 4, dtype=torch.bool)


def kept(mask):
    return ["".join(".x"[int(v)] for v in row) for row in mask.tolist()]


def test_bos_is_masked_where_it_stands_first(lens):
    ids = torch.tensor([[0, 5, 0, 1], [5, 0, 0, 1]])
    assert kept(without_bos(ids, ALL, 0)) == [".xxx", "xxxx"]
    assert without_bos(ids, ALL, None) is ALL
    assert ALL.all()
    assert bos_id(lens, None) is None
    assert bos_id(lens, 3) == 3
    lens.model.tokenizer.bos_token_id = 0
    assert bos_id(lens, None) == 0
    assert bos_id(object(), None) is None


def test_padding_is_masked_at_both_ends_and_counts_inside():
    ids = torch.tensor([[9, 9, 1, 2], [1, 9, 2, 9]])
    assert kept(without_padding(ids, ALL, 9)) == ["..xx", "xxx."]
    assert kept(without_padding(ids, ALL, None)) == ["xxxx", "xxxx"]
    assert kept(without_padding(torch.full((2, 4), 9), ALL, 9)) == ["....", "...."]


def test_special_tokens_are_masked_wherever_they_stand(lens):
    ids = torch.tensor([[0, 5, 0, 7], [5, 0, 0, 1]])
    chosen = Excluded.chosen(lens, exclude_special_tokens=[0, 7])
    assert kept(chosen.applied(ids, ALL)) == [".x..", "x..x"]
    lens.model.tokenizer.all_special_ids = [7]
    lens.model.tokenizer.pad_token_id = 1
    assert Excluded.chosen(lens, bos_token_id=5, exclude_special_tokens=True) == Excluded(5, 1, (7,))
    assert Excluded.chosen(lens, exclude_bos=False, exclude_padding=False) == Excluded()


def test_a_model_without_tokenizer_cannot_name_its_special_tokens():
    with pytest.raises(ValueError, match="give their ids instead"):
        Excluded.chosen(object(), exclude_special_tokens=True)
