"""A run of per-layer transcoders on several processes."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pullback.training.config import TrainConfig
from pullback.training.distributed.layout import Layout
from pullback.training.distributed.shares import block
from pullback.training.run import PerLayerRun, Widths, new_step
from pullback.training.share import WHOLE
from pullback.training.state import flattened, nested
from pullback.training.step import TrainingDiverged, TrainStep
from pullback.transcoders import JumpReLU, LayeredDictionary, ModelReading, Transcoder, TranscoderSet

# What has a row a feature, in the state of a step and among the weights; the rest is the same in every share.
BY_FEATURE = ("W_enc", "b_enc", "W_dec", "log_theta", "theta", "idle")


class SharedRun(PerLayerRun):
    """This process's layers of a run, whole or by features, as the layout says.

    Where every process makes the same of the same numbers (or, of whole layers, does nothing for the others), the
    result is that of one process: to the bit if no sum is divided, to rounding if features are.
    """

    shared = True

    def __init__(
        self,
        config: TrainConfig,
        layout: Layout,
        widths: Widths,
        device: torch.device,
        readings: Mapping[int, ModelReading | None],
    ) -> None:
        if config.normalize_activations != "none":
            raise ValueError(
                "normalize_activations is for one process so far: its factors are not shared. Loss 'fvu' needs none; "
                "or give parallel='none'"
            )
        config = config.sized(next(iter(widths.values()))[0])

        def step(layer: int) -> Any:
            seed, reading = config.seed + layer, readings.get(layer)
            return new_step(config, *widths[layer], device, seed=seed, reading=reading, share=layout.share)

        super().__init__(config, {layer: step(layer) for layer in layout.layers})
        self.layout = layout
        self.world = layout.world
        self.readings = readings
        self.n_dictionaries = len(layout.owners)
        self.reports = self.world.rank == 0
        # Within a step that waits for others, only what all meet at once can be collected.
        self._collected = Exception if layout.share is WHOLE else (TrainingDiverged, ValueError)

    def step(self, rows: Sequence[Tensor], lr: float) -> None:
        with self.world.together(self._collected):
            super().step(rows, lr)

    def check(self) -> None:
        """Also raise RuntimeError where copies of one weight are no longer the same, bit for bit."""
        with self.world.together():
            super().check()
        every = self.world.objects({layer: self._checksum(step) for layer, step in self.steps.items()})
        for layer, ranks in self.layout.owners.items():
            if len({every[rank][layer] for rank in ranks}) > 1:
                raise RuntimeError(
                    f"layer {layer}: the copies in processes {ranks} have drifted apart; the network or a device makes "
                    "errors. The last checkpoint is sound: start again with resume=True"
                )

    def figures(self) -> dict[int, dict[str, float]]:
        every = {layer: own for part in self.world.objects(super().figures()) for layer, own in part.items()}
        return dict(sorted(every.items()))

    def dictionary(self) -> TranscoderSet:
        """The whole one, in every process; collected in main memory where it is divided."""
        if self.layout.copied:
            return super().dictionary()
        every = {layer: told for part in self.world.objects(self._described()) for layer, told in part.items()}
        return TranscoderSet({layer: self._collected_layer(layer, *every[layer]) for layer in self.layout.owners})

    def saved(self, path: str | os.PathLike[str] | None) -> TranscoderSet:
        sets = self.dictionary()
        with self.world.together():
            if path is not None and self.world.rank == 0:
                sets.save(path)
        return sets

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]], dictionary: LayeredDictionary) -> None:
        """From the state of all layers, all features of each."""
        if sorted(map(int, state)) != sorted(self.layout.owners):
            raise ValueError(f"the checkpoint has layers {sorted(map(int, state))}, not {sorted(self.layout.owners)}")
        held = self.layout.share.features(self.config.d_sae)
        for layer, step in self.steps.items():
            weights = {name: weight.detach() for name, weight in dictionary[layer].named_parameters()}
            tensors, numbers = flattened({**state[str(layer)], "weights": weights})
            own = {path: tensor[held] if is_by_feature(path) else tensor for path, tensor in tensors.items()}
            step.load_state_dict(nested(own, numbers))

    def _checksum(self, step: TrainStep) -> int:
        """Of the state that others have as well."""
        found = 0
        for path, tensor in flattened(step.state_dict())[0].items():
            if self.layout.copied or not is_by_feature(path):
                found = zlib.crc32(tensor.cpu().contiguous().numpy().tobytes(), found)
        return found

    def _described(self) -> dict[int, tuple[dict[str, tuple[list[int], torch.dtype]], Any]]:
        """{layer: (shapes and dtypes by name, activation)} of what is held here; theta is a tensor among the others."""
        return {
            layer: (
                {name: (list(tensor.shape), tensor.dtype) for name, tensor in _tensors(step.transcoder).items()},
                None if isinstance(step.activation, JumpReLU) else step.rule.activation(),
            )
            for layer, step in self.steps.items()
        }

    def _collected_layer(self, layer: int, shapes: Mapping[str, Any], activation: Any) -> Transcoder:
        own = _tensors(self.steps[layer].transcoder) if layer in self.steps else {}
        found = {}
        for name, (shape, dtype) in shapes.items():
            owners = self.layout.owners[layer] if name in BY_FEATURE else self.layout.owners[layer][:1]
            whole = [self.config.d_sae, *shape[1:]] if name in BY_FEATURE else shape
            found[name] = torch.empty(whole, dtype=dtype)
            for place, owner in enumerate(owners):
                part = block(place, len(owners), whole[0]) if name in BY_FEATURE else slice(None)
                target = found[name][part]
                sent = own[name].contiguous() if owner == self.world.rank else target.to(self.device)
                target.copy_(self.world.told(sent, owner))
        theta = found.pop("theta", None)
        return Transcoder(
            **found,
            activation=activation if theta is None else JumpReLU(theta),
            hook_in=self.config.hook_name,
            hook_out=self.config.hook_name_out,
            reading=self.readings.get(layer),
        )


def is_by_feature(path: str) -> bool:
    """Whether the tensor at a path of a state has a row for each feature."""
    return path.rsplit("/", 1)[-1] in BY_FEATURE


def _tensors(tc: Transcoder) -> dict[str, Tensor]:
    theta = {} if tc.theta is None else {"theta": tc.theta}
    return {name: weight.detach() for name, weight in tc.named_parameters()} | theta
