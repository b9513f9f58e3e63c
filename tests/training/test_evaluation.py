"""Evaluation against its definitions, computed by hand on a toy model."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch

from pullback.training import evaluate
from pullback.training.evaluation.report import DENSITY_LOG10_EDGES
from pullback.transcoders import CrossLayerTranscoder, JumpReLU, ReLU, SourceLayer, TopK, Transcoder, TranscoderSet


@pytest.fixture
def rough(lens):
    """Transcoders that are off: the exact MLPs with some neurons below a threshold silenced, and a bias error."""
    sets = {}
    for layer, (W_in, b_in, W_out, b_out) in enumerate(lens.mlps):
        sets[layer] = Transcoder(W_in, b_in - 0.3, W_out, b_out + 0.1, activation=JumpReLU(0.5))
    return TranscoderSet(sets)


def numbers(tree, path=()):
    """{path: number} of nested dicts and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if items is None:
        return {path: tree}
    return {place: leaf for key, branch in items for place, leaf in numbers(branch, (*path, key)).items()}


def cross_entropy(logits, tokens, scored):
    log_p = logits.double().log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
    return float(-log_p[scored[:, :-1] & scored[:, 1:]].mean())


def test_exact_transcoders_recover_everything(lens, tokens):
    report = evaluate(lens, lens.exact(), tokens)
    assert report.ce_replaced == pytest.approx(report.ce_original, abs=1e-6)
    assert report.ce_recovered == pytest.approx(1.0, abs=1e-5)
    assert report.kl == pytest.approx(0.0, abs=1e-6)
    assert report.top1_agreement == 1.0
    assert max(report.fvu.values()) < 1e-10
    assert min(report.explained_variance.values()) > 1 - 1e-10
    assert report.n_tokens == tokens.numel()


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_every_figure_is_its_definition(lens, rough, tokens, batch_size):
    mask = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(2)) > 0.3
    report = evaluate(lens, rough, tokens, mask, batch_size=batch_size)
    io = lens.mlp_io(tokens)
    for layer, tc in rough.items():
        x, y = (t[mask].double() for t in io[layer])
        z = tc.activation.dense(x @ tc.W_enc.double().T + tc.b_enc.double())
        residual = y - (z @ tc.W_dec.double() + tc.b_dec.double())
        total = (y - y.mean(0)).square().sum()
        assert report.l0[layer] == pytest.approx(float((z != 0).sum(1).double().mean()))
        assert report.fvu[layer] == pytest.approx(float(residual.square().sum() / total), rel=1e-5)
        centred = (residual - residual.mean(0)).square().sum()
        assert report.explained_variance[layer] == pytest.approx(float(1 - centred / total), rel=1e-5)
        assert report.dead[layer] == pytest.approx(float((z == 0).all(0).double().mean()))
        y_hat = y - residual
        cosine = (y * y_hat).sum(1) / (y.norm(dim=1) * y_hat.norm(dim=1))
        assert report.cosine[layer] == pytest.approx(float(cosine.mean()), rel=1e-5)
        shares = (z != 0).double().mean(0)
        edges = DENSITY_LOG10_EDGES
        inside = [sum(low <= s.log10() < high for s in shares if s > 0) for low, high in pairwise(edges)]
        inside[-1] += sum(s == 1 for s in shares)
        assert report.density[layer] == inside
        assert sum(inside) == round((1 - report.dead[layer]) * tc.d_sae) > 0
    original = lens.logits(tokens)
    rules = {
        "ce_replaced": {l: lambda x, _y, l=l: rough[l](x) for l in rough},
        "ce_mean_ablated": {l: lambda _x, y, l=l: io[l][1][mask].mean(0).expand_as(y) for l in rough},
        "ce_zero_ablated": {l: lambda _x, y: torch.zeros_like(y) for l in rough},
    }
    assert report.ce_original == pytest.approx(cross_entropy(original, tokens, mask), rel=1e-5)
    for name, fns in rules.items():
        with lens.patch_mlp(fns):
            logits = lens.logits(tokens)
        assert getattr(report, name) == pytest.approx(cross_entropy(logits, tokens, mask), rel=1e-4), name
        if name == "ce_replaced":
            followed = mask[:, :-1] & mask[:, 1:]
            p, q = (t[:, :-1][followed].double().log_softmax(-1) for t in (original, logits))
            assert report.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
            assert report.top1_agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    expected = (report.ce_mean_ablated - report.ce_replaced) / (report.ce_mean_ablated - report.ce_original)
    assert report.ce_recovered == pytest.approx(expected)
    expected = (report.ce_zero_ablated - report.ce_replaced) / (report.ce_zero_ablated - report.ce_original)
    assert report.ce_recovered_from_zero == pytest.approx(expected)
    assert report.alone == report.compared == {}
    assert lens.patches == {}


def test_bos_is_left_alone_in_every_arm(lens, rough, tokens):
    tokens = tokens.clone()
    tokens[:, 0] = 0
    lens.model.tokenizer.bos_token_id = 0
    touched = []
    original = lens.patch_mlp

    def spy(fns, **hooks):
        def wrap(fn):
            def inner(x, y):
                out = fn(x, y)
                touched.append((bool((out[:, 0] == y[:, 0]).all()), bool((out[:, 1:] != y[:, 1:]).any())))
                return out

            return inner

        return original({layer: wrap(fn) for layer, fn in fns.items()}, **hooks)

    lens.patch_mlp = spy
    report = evaluate(lens, rough, tokens, batch_size=24)
    assert touched == [(True, True)] * 6
    assert report.n_tokens == tokens[:, 1:].numel()
    assert report.ce_original == pytest.approx(evaluate(lens, rough, tokens[:, 1:]).ce_original, rel=1e-5)
    assert evaluate(lens, rough, tokens, exclude_bos=False).n_tokens == tokens.numel()


def test_each_layer_alone_is_its_definition(lens, rough, tokens):
    report = evaluate(lens, rough, tokens, per_layer=True)
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    assert list(report.alone) == [0, 1]
    for layer, arms in report.alone.items():
        means = lens.mlp_io(tokens)[layer][1].flatten(0, 1).mean(0)
        rules = {
            "ce_replaced": lambda x, _y, l=layer: rough[l](x),
            "ce_mean_ablated": lambda _x, y, m=means: m.expand_as(y),
            "ce_zero_ablated": lambda _x, y: torch.zeros_like(y),
        }
        for name, rule in rules.items():
            with lens.patch_mlp({layer: rule}):
                logits = lens.logits(tokens)
            assert getattr(arms, name) == pytest.approx(cross_entropy(logits, tokens, everywhere), rel=1e-4), name
        assert arms.ce_original == report.ce_original
        assert arms.ce_replaced != pytest.approx(report.ce_replaced, rel=1e-3)
    whole = {name: value for name, value in report.to_dict().items() if name != "alone"}
    assert whole == {n: v for n, v in evaluate(lens, rough, tokens).to_dict().items() if n != "alone"}
    assert report.to_dict()["alone"][1]["ce_recovered"] == report.alone[1].ce_recovered
    assert "recovered" in report.table().splitlines()[0]
    only = evaluate(lens, TranscoderSet({1: rough[1]}), tokens, per_layer=True)
    assert only.alone[1].ce_replaced == only.ce_replaced == pytest.approx(report.alone[1].ce_replaced)


def test_sets_side_by_side_are_measured_as_alone_and_share_what_they_can(lens, rough, tokens):
    autoencoders = TranscoderSet({layer: as_autoencoder(tc) for layer, tc in rough.items()})
    lens.forward_passes = 0
    report = evaluate(lens, rough, tokens, compare={"sae": autoencoders, "exact": lens.exact()}, batch_size=24)
    assert lens.forward_passes == 3 + 6, "reconstruction of each; original, two ablations, three replaced"
    assert list(report.compared) == ["sae", "exact"]
    assert report.compared["sae"] == evaluate(lens, autoencoders, tokens, batch_size=24)
    assert report.compared["exact"].ce_recovered == pytest.approx(1, abs=1e-5)
    assert report.compared["sae"].ce_mean_ablated == report.ce_mean_ablated
    assert report.compared["sae"].fvu != report.fvu
    assert "\nsae\n" in str(report)


def as_autoencoder(tc):
    return Transcoder(
        tc.W_enc, tc.b_enc, tc.W_dec, tc.b_dec, activation=tc.activation, hook_in=tc.hook_out, hook_out=tc.hook_out
    )


def across(sets):
    """The features of layer 0 also write to layer 1, the negative of what they write to layer 0, bias included."""
    first, second = sets[0], sets[1]
    W_dec = torch.stack([first.W_dec, -first.W_dec], 1), second.W_dec[:, None]
    b_dec = first.b_dec, second.b_dec - first.b_dec
    return CrossLayerTranscoder(
        {
            layer: SourceLayer(tc.W_enc, tc.b_enc, W_dec[layer], b_dec[layer], activation=tc.activation)
            for layer, tc in sets.items()
        }
    )


def test_features_of_earlier_layers_reach_later_ones(lens, rough, tokens):
    sets = across(rough)
    report = evaluate(lens, sets, tokens, per_layer=True)
    x0 = lens.mlp_io(tokens)[0][0]  # what layer 0 reads is the same in every arm
    from_zero = rough[0](x0)
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    for fns, arms in (
        ({0: lambda x, _y: rough[0](x), 1: lambda x, _y: rough[1](x) - from_zero}, report),
        ({1: lambda x, _y: rough[1](x) - from_zero}, report.alone[1]),
    ):
        with lens.patch_mlp(fns):
            logits = lens.logits(tokens)
        assert arms.ce_replaced == pytest.approx(cross_entropy(logits, tokens, everywhere), rel=1e-4)
    x, y = lens.mlp_io(tokens)[1]
    residual = (y - rough[1](x) + from_zero).flatten(0, 1)
    fvu = residual.square().sum() / (y - y.flatten(0, 1).mean(0)).square().sum()
    assert report.fvu[1] == pytest.approx(float(fvu), rel=1e-4)


def test_padding_is_neither_scored_nor_predicted(lens, rough):
    lists = [[3, 4, 5, 6], [7, 8], [9, 10, 11]]
    together = evaluate(lens, rough, lists)
    apart = [evaluate(lens, rough, [row]) for row in lists]
    assert together.n_tokens == 9
    weights = [3, 1, 2]
    expected = sum(r.ce_replaced * w for r, w in zip(apart, weights, strict=True)) / 6
    assert together.ce_replaced == pytest.approx(expected, rel=1e-5)


def test_generators_of_batches_are_read_once(lens, rough, tokens):
    whole = evaluate(lens, rough, tokens)
    parts = evaluate(lens, rough, (part for part in tokens.split(7)))
    for name, value in numbers(whole.to_dict()).items():
        assert numbers(parts.to_dict())[name] == pytest.approx(value, rel=1e-5), name


def test_layers_may_have_hooks_of_their_own(lens, rough, tokens):
    mixed = TranscoderSet({0: rough[0], 1: rough[1]})
    expected = evaluate(lens, mixed, tokens)
    rough[1].hook_out = "mlp.hook_out"
    assert evaluate(lens, mixed, tokens) == expected


def test_skip_path_counts(lens, tokens):
    skip = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
    sets = lens.exact()
    W_in, b_in, W_out, b_out = lens.mlps[0]
    with_skip = TranscoderSet({0: Transcoder(W_in, b_in, W_out, b_out, skip, activation=ReLU())})
    assert evaluate(lens, TranscoderSet({0: sets[0]}), tokens).fvu[0] < 1e-10
    assert evaluate(lens, with_skip, tokens).fvu[0] > 0.1


@pytest.mark.parametrize("tying", ["none", "per_source", "per_target"])
def test_features_that_write_onward_count_in_every_layer(lens, tokens, tying):
    """Of layer 0, half of what its features write to layer 1 too; reconstructions and the replaced model by hand."""
    own = lens.exact()

    def source(layer, tc):
        W_dec = tc.W_dec[:, None]
        W_dec = torch.cat([W_dec, W_dec / 2], 1) if (tying, layer) == ("none", 0) else W_dec
        return SourceLayer(tc.W_enc, tc.b_enc, W_dec, tc.b_dec, activation=ReLU())

    clt = CrossLayerTranscoder({layer: source(layer, tc) for layer, tc in own.items()}, tying)
    report = evaluate(lens, clt, tokens, batch_size=5, per_layer=True)
    (x0, _), (x1, y1) = (v for v in lens.mlp_io(tokens).values())
    onward = {"none": own[0].W_dec / 2, "per_source": own[0].W_dec, "per_target": own[1].W_dec}[tying]
    written = own[0].encode(x0).to_dense() @ onward
    residual, targets = written.view_as(y1), y1.flatten(0, 1)
    fvu = residual.square().sum() / (targets - targets.mean(0)).square().sum()
    assert report.fvu[0] == pytest.approx(0, abs=1e-9)
    assert report.fvu[1] == pytest.approx(float(fvu), rel=1e-4)
    with lens.patch_mlp({1: lambda x, y: own[1](x) + written.view_as(y)}):
        replaced = cross_entropy(lens.logits(tokens), tokens, torch.ones_like(tokens, dtype=torch.bool))
    assert report.ce_replaced == pytest.approx(replaced, abs=1e-5)
    assert report.alone[1].ce_replaced == pytest.approx(replaced, abs=1e-5)
    assert report.l0 == evaluate(lens, own, tokens).l0


def test_the_report_prints_a_table_and_dumps_to_json(lens, rough, tokens):
    report = evaluate(lens, rough, tokens)
    text = str(report)
    assert text.splitlines()[0].split() == ["layer", "l0", "fvu", "cosine", "ev", "dead"]
    assert "CE recovered" in text
    assert json.loads(json.dumps(report.to_dict()))["ce_recovered"] == report.ce_recovered


def test_nothing_to_score_is_refused(lens, rough, tokens):
    with pytest.raises(ValueError, match="no token is scored"):
        evaluate(lens, rough, tokens, torch.zeros_like(tokens, dtype=torch.bool))
    other = Transcoder(torch.ones(4, 3), torch.ones(4), torch.ones(4, 3), torch.ones(3), activation=TopK(1))
    with pytest.raises(ValueError, match="wrong width"):
        evaluate(lens, TranscoderSet({0: other}), tokens)
