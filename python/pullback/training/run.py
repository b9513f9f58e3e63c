"""A run: the dictionaries of some layers that are trained together, under one configuration, on one stream of
batches."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pullback.training.config import TrainConfig
from pullback.training.learner import Learner, TrainingDiverged
from pullback.training.normalize import Scale
from pullback.training.plan import trained_bytes
from pullback.training.share import WHOLE, Share
from pullback.training.state import target_variance
from pullback.training.step import TrainStep
from pullback.transcoders import CrossLayerTranscoder, LayeredDictionary, ModelReading, Transcoder, TranscoderSet

Trained = TranscoderSet | CrossLayerTranscoder
"""What comes of a run"""

Widths = Mapping[int, tuple[int, int]]
"""{layer: (d_in, d_out)}"""


class Run(ABC):
    """What `fit` trains.

    Attributes:
        config: its settings.
        layers: ascending; batches are [x of the first layer, y of the first layer, x of the next, ...].
        n_dictionaries: how many are trained, for what is said to the user.
        device: of the weights.
        reports: whether this process says how the run goes; of several, one does.
        shared: whether other processes take part: then all of them call the same methods at the same time.
        learners: {layer: what learns there}.
    """

    reports = True
    shared = False
    config: TrainConfig
    device: torch.device
    layers: list[int]
    n_dictionaries: int
    learners: Mapping[int, Learner[Any]]

    @abstractmethod
    def step(self, rows: Sequence[Tensor], lr: float) -> None:
        """One optimisation step of every layer. Raises TrainingDiverged, which says where."""

    @abstractmethod
    def check(self) -> None:
        """Raise what the last step on a GPU has not said yet."""

    @abstractmethod
    def figures(self) -> dict[int, dict[str, float]]:
        """{layer: {name: figure}} of the last batch; see `loggers` for the names."""

    @abstractmethod
    def dictionary(self) -> Trained:
        """The weights as they are now; later steps go on changing them."""

    @abstractmethod
    def assembled(self, layers: Mapping[int, Any]) -> Trained:
        """The dictionary that these layers make, which may come from anywhere."""

    def saved(self, path: str | os.PathLike[str] | None) -> Trained:
        """The dictionary, written to a path if there is one."""
        sets = self.dictionary()
        if path is not None:
            sets.save(path)
        return sets

    def whole_state(self) -> dict[str, dict[str, Any]]:
        """{layer: nested state}: what a resumed run needs, weights and all. The tensors are the live ones. Raises what
        `check` raises."""
        self.check()
        return {str(layer): one.state_dict() for layer, one in self.learners.items()}

    def load_whole_state(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Continue from a `whole_state`. Raises ValueError where it is of other sizes."""
        for layer, one in self.learners.items():
            one.load_state_dict(state[str(layer)])

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """`whole_state` without what the dictionary has, a file of a checkpoint for each layer."""
        found = self.whole_state()
        for own in found.values():
            del own["weights"]
        return found

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]], dictionary: LayeredDictionary) -> None:
        """Continue from a `state_dict` and a `dictionary` to the bit.

        Raises:
            ValueError: they belong to a run of other layers or sizes.
        """
        if sorted(map(int, state)) != list(self.learners):
            raise ValueError(f"the checkpoint has layers {sorted(map(int, state))}, this run has {list(self.learners)}")
        weights = {
            str(layer): {name: weight.detach() for name, weight in dictionary[layer].named_parameters()}
            for layer in self.learners
        }
        self.load_whole_state({layer: {"weights": weights[layer], **own} for layer, own in state.items()})

    @property
    def memory(self) -> float:
        """Bytes of weights and of what the optimizer keeps."""
        every = sum(weight.numel() for one in self.learners.values() for weight in one.features.parameters())
        encoder = sum(one.features.W_enc.numel() for one in self.learners.values())
        return trained_bytes(encoder, every - encoder, self.config.torch_dtype.itemsize)


class PerLayerRun(Run):
    """Transcoders that know nothing of each other.

    With `normalize_activations`, the first batch says by what a layer's activations are multiplied, and `dictionary`
    has the factors in its weights.

    Args:
        steps: {layer: step}.
    """

    def __init__(self, config: TrainConfig, steps: Mapping[int, TrainStep]) -> None:
        self.config = config
        self.learners = self.steps = {layer: steps[layer] for layer in sorted(steps)}
        self.layers = list(self.steps)
        self.n_dictionaries = len(self.layers)
        self.device = self.steps[self.layers[0]].transcoder.device
        self._losses: dict[int, Tensor] = {}
        self._scales: dict[int, Scale] = {}

    def step(self, rows: Sequence[Tensor], lr: float) -> None:
        for (layer, step), given, y in zip(self.steps.items(), rows[::2], rows[1::2], strict=True):
            step.lr = lr
            x = y if self.config.autoencodes else given
            with self._naming(layer):
                if self.config.normalize_activations == "none":
                    self._losses[layer] = step(x, y)
                else:
                    scale = self._scales.get(layer) or Scale.of(x, y)
                    self._losses[layer] = step(*scale.applied(x, y, self.config.torch_dtype))
                    self._scales[layer] = scale

    def check(self) -> None:
        for layer, step in self.steps.items():
            with self._naming(layer):
                step.check()

    def figures(self) -> dict[int, dict[str, float]]:
        return {
            layer: step_figures(step, self._losses[layer], self._scales.get(layer))
            for layer, step in self.steps.items()
        }

    def transcoder(self, layer: int) -> Transcoder:
        """That of one layer, see `dictionary`."""
        own = self.steps[layer].transcoder
        return self._scales[layer].folded(own) if layer in self._scales else own

    def dictionary(self) -> TranscoderSet:
        return self.assembled({layer: self.transcoder(layer) for layer in self.layers})

    def assembled(self, layers: Mapping[int, Transcoder]) -> TranscoderSet:
        return TranscoderSet(layers)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        found = super().state_dict()
        for layer, scale in self._scales.items():  # whose weights are not those of the dictionary, to the bit
            weights = self.steps[layer].transcoder.named_parameters()
            found[str(layer)] |= {"scale": scale._asdict(), "weights": {name: w.detach() for name, w in weights}}
        return found

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]], dictionary: LayeredDictionary) -> None:
        super().load_state_dict(state, dictionary)
        self._scales = {int(layer): Scale(**own["scale"]) for layer, own in state.items() if "scale" in own}

    @contextmanager
    def _naming(self, layer: int) -> Iterator[None]:
        """Says which layer diverged."""
        try:
            yield
        except TrainingDiverged as error:
            raise TrainingDiverged(f"layer {layer}: {error}", transcoder=self.transcoder(layer)) from None


def new_step(
    config: TrainConfig,
    d_in: int,
    d_out: int,
    device: torch.device,
    *,
    seed: int,
    reading: ModelReading | None,
    share: Share = WHOLE,
) -> TrainStep:
    return TrainStep(
        d_in,
        d_out,
        config.d_sae,
        activation=config.trained_activation,
        lr=config.lr,
        device=device,
        dtype=config.torch_dtype,
        betas=(config.adam_beta1, config.adam_beta2),
        optimizer=config.optimizer,
        decoder_norm=config.decoder_norm,
        max_grad_norm=config.max_grad_norm,
        auxk_alpha=config.auxk_alpha,
        auxk_k=config.auxk_k,
        dead_feature_window=config.dead_after,
        skip_connection=config.skip_connection,
        hook_in=config.hook_name,
        hook_out=config.hook_name_out,
        reading=reading,
        seed=seed,
        micro_batch_size=config.micro_batch_size,
        recipe=config,
        share=share,
    )


def step_figures(step: Learner, loss: Tensor, scale: Scale | None = None) -> dict[str, float]:
    """Those of a step that has just trained. The squared error is that of raw targets, whatever they were scaled by."""
    stats = step.stats
    assert stats is not None
    fvu = float(stats.fvu)
    return {
        "losses/overall_loss": float(loss),
        "losses/mse_loss": fvu * float(target_variance(step)) / (1.0 if scale is None else scale.y**2),
        "losses/auxiliary_reconstruction_loss": float(stats.auxk),
        "metrics/explained_variance": 1 - fvu,
        "metrics/fvu": fvu,
        "metrics/l0": float(stats.l0),
        "sparsity/dead_features": round(float(stats.dead) * step.d_sae),
    }
