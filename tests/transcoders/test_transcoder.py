"""One transcoder: the formula, shapes, precision, and what the constructor refuses."""

from __future__ import annotations

import pytest
import torch

from pullback.transcoders import BatchTopK, JumpReLU, ReLU, TopK, Transcoder


def formula(tc, x):
    """The forward pass in float64, straight from the definition."""
    W_enc, b_enc, W_dec, b_dec = (w.double() for w in (tc.W_enc, tc.b_enc, tc.W_dec, tc.b_dec))
    rows = x.flatten(0, -2).double()
    theta = tc.theta.double() if tc.theta is not None else None
    rule = tc.activation if theta is None else JumpReLU(theta)
    y = rule.dense(rows @ W_enc.T + b_enc) @ W_dec + b_dec
    if tc.W_skip is not None:
        y = y + rows @ tc.W_skip.double().T
    return y.view(*x.shape[:-1], -1)


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_forward_is_the_formula(make, activation, x, skip, dtype):
    tc = make(activation, skip=skip, dtype=dtype)
    y = tc(x)
    assert y.shape == (3, 7, tc.d_out)
    assert y.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(y.double(), formula(tc, x), rtol=1e-4, atol=1e-4)


def test_decode_leaves_the_skip_path_to_forward(make, x):
    tc = make(TopK(5), skip=True)
    rest = tc(x).flatten(0, 1) - tc.decode(tc.encode(x))
    torch.testing.assert_close(rest, x.flatten(0, 1) @ tc.W_skip.T)


def test_leading_dimensions_are_flattened_in_row_major_order(make, x):
    tc = make(TopK(5))
    acts, row = tc.encode(x), tc.encode(x[1, 2])
    assert (acts.n_rows, row.n_rows) == (21, 1)
    assert torch.equal(acts[9:10].indices, row.indices)
    assert tc(x[1, 2]).shape == (tc.d_out,)
    assert tc(x[:, :0]).shape == (3, 0, tc.d_out)


def test_encode_takes_non_contiguous_and_16_bit_inputs(make, x):
    tc = make(ReLU())
    turned = x.transpose(0, 1)
    torch.testing.assert_close(tc(turned), tc(x).transpose(0, 1))
    assert torch.equal(tc(x.bfloat16()), tc(x.bfloat16().float()))


def test_preactivations_at_chosen_places(make, x):
    tc = make(TopK(5))
    rows, features = torch.tensor([0, 20, 3, 3]), torch.tensor([36, 0, 4, 4])
    h = x.flatten(0, 1).double() @ tc.W_enc.double().T + tc.b_enc.double()
    assert torch.equal(tc.preactivations(x, rows, features), h[rows, features].float())
    acts = tc.encode(x)
    torch.testing.assert_close(tc.preactivations(x, acts.rows(), acts.indices), acts.values)
    assert tc.preactivations(x, [], []).shape == (0,)


def test_weights_ask_for_no_gradient_and_encode_tracks_none(make, x):
    tc = make(TopK(5))
    assert not tc(x).requires_grad
    tc.requires_grad_()
    assert not tc.encode(x).values.requires_grad
    tc(x).sum().backward()
    assert tc.W_dec.grad is not None
    assert tc.W_enc.grad is None


def test_thresholds_follow_the_weights_to_another_dtype(make):
    tc = make(JumpReLU(torch.rand(37))).to(torch.float64)
    assert tc.activation.theta.dtype == torch.float64
    assert tc.dtype == torch.float64


def parts(F=6, d_in=4, d_out=3):
    return {
        "W_enc": torch.ones(F, d_in),
        "b_enc": torch.ones(F),
        "W_dec": torch.ones(F, d_out),
        "b_dec": torch.ones(d_out),
    }


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"W_enc": torch.ones(4, 6)}, r"W_enc must be \[F, d_in\]=\[6, 4\], got \[4, 6\] \(transposed\?\)"),
        ({"W_dec": torch.ones(3, 6)}, r"W_dec must be \[F, d_out\]=\[6, 3\], got \[3, 6\] \(transposed\?\)"),
        ({"W_skip": torch.ones(4, 3)}, r"W_skip must be \[d_out, d_in\]=\[3, 4\], got \[4, 3\] \(transposed\?\)"),
        ({"b_enc": torch.ones(5)}, r"W_enc must be \[F, d_in\]=\[5, 6\], got \[6, 4\]"),
        ({"b_enc": torch.ones(6, 1)}, r"b_enc must be \[F\]=\[6\], got \[6, 1\]"),
        ({"b_dec": torch.ones(2)}, r"W_dec must be \[F, d_out\]=\[6, 2\], got \[6, 3\]"),
        ({"W_enc": torch.ones(6)}, "must be matrices"),
        ({"W_enc": torch.ones(6, 0)}, "no dimension may be empty"),
        ({"W_enc": torch.ones(6, 4, dtype=torch.long)}, "floating point"),
        ({"b_dec": torch.ones(3, dtype=torch.float64)}, "share one dtype"),
        ({"W_dec": torch.full((6, 3), torch.nan)}, "W_dec has 18 NaN or infinite entries"),
        ({"b_enc": torch.tensor([0, 0, torch.inf, 0, 0, 0])}, "b_enc has 1 NaN or infinite"),
        ({"activation": TopK(7)}, "k=7 exceeds the 6 features"),
        ({"activation": BatchTopK(7)}, "k=7 exceeds the 6 features"),
        ({"activation": JumpReLU(torch.zeros(5))}, r"theta must be a number or \[F\]=\[6\], got \[5\]"),
        ({"hook_in": "blocks.3.mlp.hook_in"}, "named inside their block"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused_with_a_sentence(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        Transcoder(**({"activation": TopK(2)} | parts() | change))


def test_wrong_widths_are_refused(make, x):
    tc = make(TopK(5))
    with pytest.raises(ValueError, match=r"encode: x must be \[\.\.\., d_in\]=\[\.\.\., 13\], got \[3, 7, 12\]"):
        tc.encode(x[..., 1:])
    small = Transcoder(torch.ones(3, 13), torch.ones(3), torch.ones(3, 11), torch.ones(11), activation=ReLU())
    with pytest.raises(ValueError, match="activations have 3 features, this transcoder has 37"):
        tc.decode(small.encode(x))
    with pytest.raises(ValueError, match="two vectors of one length"):
        tc.preactivations(x, [0, 1], [0])
