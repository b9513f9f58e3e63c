"""A set is a dict, and a dictionary in the sense of attribution."""

from __future__ import annotations

import pytest
import torch

from pullback.transcoders import Dictionary, ModelReading, TopK, TranscoderSet


@pytest.fixture
def sets(make):
    return TranscoderSet({3: make(TopK(5), seed=3), 1: make(TopK(4), seed=1, skip=True, hook_in="ln2.hook_out")})


def test_it_is_a_mapping_in_order_of_layers(sets):
    assert list(sets) == sets.layers == [1, 3]
    assert dict(sets)[3] is sets[3]
    assert 2 not in sets
    assert len(sets) == 2
    with pytest.raises(KeyError, match="no transcoder for layer 2"):
        sets[2]
    assert sets.get(2) is None
    assert "37" in repr(sets)


def test_it_speaks_the_protocol_of_attribution(sets, x):
    assert isinstance(sets, Dictionary)
    assert (sets.targets(1), sets.sources(1), sets.sources(2)) == ([1], [1], [])
    assert torch.equal(sets.encode(3, x).values, sets[3].encode(x).values)
    assert sets.decoder(3, 3).data_ptr() == sets[3].W_dec.data_ptr()
    ids = torch.tensor([5, 0], dtype=torch.int32)
    assert torch.equal(sets.decoder_rows(3, ids, 3), sets[3].W_dec[[5, 0]])
    assert torch.equal(sets.encoder_rows(3, [5, 0]), sets[3].W_enc[[5, 0]])
    assert torch.equal(sets.b_enc(3), sets[3].b_enc)
    assert torch.equal(sets.b_dec(3), sets[3].b_dec)
    assert torch.equal(sets.skip(1), sets[1].W_skip)
    assert sets.skip(3) is None
    assert (sets.hook_in(1), sets.hook_in(3), sets.hook_out(1)) == ("ln2.hook_out", "mlp.hook_in", "hook_mlp_out")
    assert sets.d_model == 11
    with pytest.raises(ValueError, match="write to layer 1 only, not to layer 3"):
        sets.decoder(1, 3)


def test_to_converts_a_copy(sets):
    before = {layer: tc.dtype for layer, tc in sets.items()}
    other = torch.float64 if before[sets.layers[0]] != torch.float64 else torch.float32
    assert {tc.dtype for tc in sets.to(dtype=other).values()} == {other}
    assert {layer: tc.dtype for layer, tc in sets.items()} == before
    assert sets.to(dtype=before[sets.layers[0]])[sets.layers[0]] is sets[sets.layers[0]]


def test_what_does_not_fit_is_refused(make):
    with pytest.raises(ValueError, match="at least one"):
        TranscoderSet({})
    with pytest.raises(ValueError, match="keys are layer numbers"):
        TranscoderSet({-1: make(TopK(3))})
    with pytest.raises(ValueError, match="must be a Transcoder, got int"):
        TranscoderSet({0: 7})
    with pytest.raises(ValueError, match=r"agree on \(d_in, d_out\).*13, 11.*13, 5"):
        TranscoderSet({0: make(TopK(3)), 1: make(TopK(3), d_out=5)})


def test_a_reading_survives_its_dict_and_refuses_others(reading):
    assert ModelReading.from_dict(reading.to_dict()) == reading
    with pytest.raises(ValueError, match=r"missing keys \['norm'\], unknown keys \['colour'\]"):
        ModelReading.from_dict({k: v for k, v in reading.to_dict().items() if k != "norm"} | {"colour": 1})
