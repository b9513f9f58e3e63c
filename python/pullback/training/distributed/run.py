"""A run on several processes, whatever is trained in it."""

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
from pullback.training.learner import Learner, TrainingDiverged
from pullback.training.run import Run, Trained, Widths
from pullback.training.runs import new_run
from pullback.training.share import WHOLE
from pullback.training.state import flattened, nested
from pullback.transcoders import FeatureLayer, JumpReLU, LayeredDictionary, ModelReading

# What has a row a feature, in the state of a step and among the weights; the rest is the same in every share.
BY_FEATURE = ("W_enc", "b_enc", "W_dec", "log_theta", "theta", "idle")


class SharedRun(Run):
    """This process's part of a run, whole layers or features of them as the layout says, with what all processes do
    together.

    Where every process makes the same of the same numbers (or, of whole layers, does nothing for the others), the
    result is that of one process: to the bit if no sum is divided, to rounding if features are.

    Attributes:
        own: the run of the part, which knows of the others what its share tells it.
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
        held = {layer: widths[layer] for layer in layout.layers}
        self.own = new_run(config, held, device, readings, layout.share)
        self.config, self.layers, self.learners = self.own.config, self.own.layers, self.own.learners
        self.device = device
        self.layout = layout
        self.world = layout.world
        self.readings = readings
        self.n_dictionaries = len(layout.owners)
        self.reports = self.world.rank == 0
        # Within a step that waits for others, only what all meet at once can be collected.
        self._collected = Exception if layout.share is WHOLE else (TrainingDiverged, ValueError)

    def step(self, rows: Sequence[Tensor], lr: float) -> None:
        with self.world.together(self._collected):
            self.own.step(rows, lr)

    def check(self) -> None:
        """Also raise RuntimeError where copies of one weight are no longer the same, bit for bit."""
        with self.world.together():
            self.own.check()
        every = self.world.objects({layer: self._checksum(one) for layer, one in self.learners.items()})
        for layer, ranks in self.layout.owners.items():
            if len({every[rank][layer] for rank in ranks}) > 1:
                raise RuntimeError(
                    f"layer {layer}: the copies in processes {ranks} have drifted apart; the network or a device makes "
                    "errors. The last checkpoint is sound: start again with resume=True"
                )

    def figures(self) -> dict[int, dict[str, float]]:
        every = {layer: own for part in self.world.objects(self.own.figures()) for layer, own in part.items()}
        return dict(sorted(every.items()))

    def dictionary(self) -> Trained:
        """The whole one, in every process; collected in main memory where it is divided."""
        if self.layout.copied:
            return self.own.dictionary()
        every = {layer: told for part in self.world.objects(self._described()) for layer, told in part.items()}
        return self.assembled({layer: self._collected_layer(layer, *every[layer]) for layer in self.layout.owners})

    def assembled(self, layers: Mapping[int, Any]) -> Trained:
        return self.own.assembled(layers)

    def saved(self, path: str | os.PathLike[str] | None) -> Trained:
        sets = self.dictionary()
        with self.world.together():
            if path is not None and self.world.rank == 0:
                sets.save(path)
        return sets

    def whole_state(self) -> dict[str, dict[str, Any]]:
        """Of this process's part."""
        return self.own.whole_state()

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]], dictionary: LayeredDictionary) -> None:
        """From the state of all layers, all features of each."""
        if sorted(map(int, state)) != sorted(self.layout.owners):
            raise ValueError(f"the checkpoint has layers {sorted(map(int, state))}, not {sorted(self.layout.owners)}")
        held = self.layout.share.features(self.config.d_sae)
        parts = {}
        for layer in map(str, self.layers):
            weights = {name: weight.detach() for name, weight in dictionary[int(layer)].named_parameters()}
            tensors, numbers = flattened({**state[layer], "weights": weights})
            own = {path: tensor[held] if is_by_feature(path) else tensor for path, tensor in tensors.items()}
            parts[layer] = nested(own, numbers)
        self.load_whole_state(parts)

    def _checksum(self, one: Learner) -> int:
        """Of the state that others have as well."""
        found = 0
        for path, tensor in flattened(one.state_dict())[0].items():
            if self.layout.copied or not is_by_feature(path):
                found = zlib.crc32(tensor.cpu().contiguous().numpy().tobytes(), found)
        return found

    def _described(self) -> dict[int, tuple[dict[str, tuple[list[int], torch.dtype]], Any]]:
        """{layer: (shapes and dtypes by name, activation)} of what is held here; theta is a tensor among the others."""
        return {
            layer: (
                {name: (list(tensor.shape), tensor.dtype) for name, tensor in _tensors(one.trained).items()},
                None if isinstance(one.activation, JumpReLU) else one.rule.activation(),
            )
            for layer, one in self.learners.items()
        }

    def _collected_layer(self, layer: int, shapes: Mapping[str, Any], activation: Any) -> FeatureLayer:
        own = _tensors(self.learners[layer].trained) if layer in self.learners else {}
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
        return type(self.learners[self.layers[0]].features)(
            **found,
            activation=activation if theta is None else JumpReLU(theta),
            hook_in=self.config.hook_name,
            hook_out=self.config.hook_name_out,
            reading=self.readings.get(layer),
        )


def is_by_feature(path: str) -> bool:
    """Whether the tensor at a path of a state has a row for each feature."""
    return path.rsplit("/", 1)[-1] in BY_FEATURE


def _tensors(features: FeatureLayer) -> dict[str, Tensor]:
    theta = {} if features.theta is None else {"theta": features.theta}
    return {name: weight.detach() for name, weight in features.named_parameters()} | theta
