"""Training of a cross-layer transcoder: one step of all layers together, and the run made of such steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from pullback.ops import on_huge_pages
from pullback.training.accumulate import Found
from pullback.training.config import TrainConfig
from pullback.training.initial import initial_rule, initial_weights
from pullback.training.joint import JointObjective
from pullback.training.learner import Learner, TrainingDiverged
from pullback.training.rules import check_recipe, keeps_unit_norm
from pullback.training.run import Run, Widths, step_figures
from pullback.training.share import WHOLE, Share
from pullback.training.wiring import WIRINGS, Wiring
from pullback.transcoders import CrossLayerTranscoder, FeatureLayer, ModelReading, SourceLayer


class CrossLayerRun(Run):
    """The layers of one cross-layer transcoder, whose residuals are common to them.

    Encoders start as those of per-layer transcoders do, and so does what features write to their own layer. What they
    write onward starts at zero. With a share, each process holds that of every layer.

    Raises:
        ValueError: settings that features which write to several layers cannot have, or layers of several widths.
    """

    def __init__(
        self,
        config: TrainConfig,
        widths: Widths,
        device: torch.device,
        readings: Mapping[int, ModelReading | None],
        share: Share = WHOLE,
    ) -> None:
        if len(set(widths.values())) > 1:
            raise ValueError(f"cross_layer: all layers must have the same widths, got {dict(widths)}")
        self.config = config
        self.layers = sorted(widths)
        self.n_dictionaries = len(self.layers)
        self.device = device
        self.learners = {
            layer: _learner(config, widths[layer], targets, device, config.seed + layer, readings.get(layer), share)
            for layer, targets in zip(self.layers, range(len(self.layers), 0, -1), strict=True)
        }
        self.wiring = WIRINGS[config.decoder_tying]([one.features for one in self.learners.values()])
        for i, one in enumerate(self.learners.values()):
            one.rule.norms = partial(_norms, self.wiring, i)
        self._losses: dict[int, Tensor] = {}

    @torch.no_grad()
    def step(self, rows: Sequence[Tensor], lr: float) -> None:
        every = list(self.learners.values())
        xs, ys = ([t.detach().to(every[0].features.W_enc).contiguous() for t in rows[start::2]] for start in (0, 1))
        with torch.autocast(self.device.type, enabled=False):  # the weights' precision is that of the step
            self._step(every, xs, ys, lr)

    def _step(self, every: list[Learner[SourceLayer]], xs: list[Tensor], ys: list[Tensor], lr: float) -> None:
        variances = [one.begin(x, y) for one, x, y in zip(every, xs, ys, strict=True)]
        batches = [one.encode(x) for one, x in zip(every, xs, strict=True)]
        if every[0].late:
            self.check()
        found = JointObjective(every, self.wiring, xs, ys, batches, [v.variance for v in variances]).found()
        squares = [one.squared_norm(layer.gradient) for one, layer in zip(every, found, strict=True)]
        own = [layer.loss + square.to(layer.loss.dtype) for layer, square in zip(found, squares, strict=True)]
        # No layer moves unless all are well: what one writes is part of the others' residuals.
        health = torch.stack(own).sum()
        if not every[0].late and not bool(health.isfinite()):
            raise self._blamed(own, found, xs, ys)
        for i, (layer, one) in enumerate(self.learners.items()):
            one.lr = lr
            one.finish([batches[i]], found[i], squares[i], health, variances[i])
            self._losses[layer] = found[i].loss

    def _blamed(
        self, own: Sequence[Tensor], found: Sequence[Found], xs: Sequence[Tensor], ys: Sequence[Tensor]
    ) -> TrainingDiverged:
        """What to raise, of the layer that is not well."""
        data = [torch.stack([x.sum(), y.sum()]) for x, y in zip(xs, ys, strict=True)]
        # NaN in one layer spreads to the gradients of those that write to it: where it is in the data comes first.
        suspects = [*enumerate(data), *enumerate(layer.loss for layer in found), *enumerate(own)]
        i = next((i for i, value in suspects if not bool(value.isfinite().all())), 0)
        layer, one = list(self.learners.items())[i]
        error = one.blame(found[i].loss, xs[i], ys[i])
        return TrainingDiverged(f"layer {layer}: {error}", transcoder=error.transcoder)

    def check(self) -> None:
        if not next(iter(self.learners.values())).failed():
            return
        for one in self.learners.values():
            one.take_back()
        one = next(iter(self.learners.values()))
        where = f"at step {one.n_steps} of training"
        raise one.diverged(
            f"the loss of some layer or its gradient is not finite {where}; look for NaN or lower lr (now {one.lr:.2g})"
        )

    def figures(self) -> dict[int, dict[str, float]]:
        return {layer: step_figures(one, self._losses[layer]) for layer, one in self.learners.items()}

    def dictionary(self) -> CrossLayerTranscoder:
        return self.assembled({layer: one.trained for layer, one in self.learners.items()})

    def assembled(self, layers: Mapping[int, SourceLayer]) -> CrossLayerTranscoder:
        return CrossLayerTranscoder(layers, self.config.decoder_tying)


def _norms(wiring: Wiring, i: int, _features: FeatureLayer) -> Tensor:
    return wiring.norms(i)


def _learner(
    config: TrainConfig,
    widths: tuple[int, int],
    targets: int,
    device: torch.device,
    seed: int,
    reading: ModelReading | None,
    share: Share,
) -> Learner[SourceLayer]:
    (d_in, d_out), d_sae, activation = widths, config.d_sae, config.trained_activation
    unit = keeps_unit_norm(activation, config, config.decoder_norm)
    check_recipe(activation, config, d_in, d_out, d_sae, unit)
    held = share.features(d_sae)
    W_enc, own = initial_weights(d_in, d_out, d_sae, unit, config.decoder_init, seed, config.torch_dtype, held)
    blocks = targets if config.decoder_tying == "none" else 1
    W_dec = on_huge_pages(torch.empty(len(W_enc), blocks, d_out, dtype=W_enc.dtype, device="cpu")).zero_()
    W_dec[:, 0] = own
    features = SourceLayer(
        W_enc,
        W_enc.new_zeros(len(W_enc)),
        W_dec,
        W_enc.new_zeros(d_out),
        W_enc.new_zeros(d_out, d_in) if config.skip_connection else None,
        activation=initial_rule(activation, d_sae, held, W_enc.dtype),
        hook_in=config.hook_name,
        hook_out=config.hook_name_out,
        reading=reading,
    ).to(device=device)
    return Learner(
        features,
        activation,
        config,
        d_sae,
        lr=config.lr,
        betas=(config.adam_beta1, config.adam_beta2),
        optimizer=config.optimizer,
        unit=unit,
        max_grad_norm=config.max_grad_norm,
        auxk_alpha=config.auxk_alpha,
        auxk_k=config.auxk_k,
        dead_feature_window=config.dead_after,
        share=share,
    )
