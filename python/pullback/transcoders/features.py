"""The features of one layer: how they read the model, and the weights with which they write."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from pullback.ops import SparseActivations
from pullback.transcoders.activations import Activation, BatchTopK, JumpReLU, TopK
from pullback.transcoders.lazy import MappedRows, Rows, encode_in_blocks
from pullback.transcoders.reading import ModelReading

if TYPE_CHECKING:
    from typing_extensions import Self

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
GATHER_BYTES = 1 << 26


class FeatureLayer(nn.Module):
    """z = act(x W_enc^T + b_enc), and what reads and writes at the same layer: W_dec, b_dec, W_skip.

    Row i of `W_enc` and of `W_dec` is feature i. `b_dec` is an output bias; there is no input bias. 16-bit weights
    compute in float32. The weights do not ask for gradients until told to (`requires_grad_()`); `encode` never tracks
    them.

    `W_enc` and `W_dec` may be `MappedRows`, which stay in their file (`load_transcoders(lazy=...)`). They are no
    parameters: `state_dict` and `parameters` do not have them. `.to` leaves them where they are and changes what is
    read of them. What is NaN or infinite in them is found where it is read.

    Raises:
        ValueError: shapes or dtypes disagree, a weight is NaN or infinite, k exceeds F, or a hook name is not relative
            to its block.
    """

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    W_skip: nn.Parameter | None
    theta: Tensor | None

    decoder_axes: ClassVar[tuple[str, ...]]
    """Axes of W_dec, the first F, the last d_out."""

    def __init__(
        self,
        W_enc: Tensor | MappedRows,
        b_enc: Tensor,
        W_dec: Rows,
        b_dec: Tensor,
        W_skip: Tensor | None = None,
        *,
        activation: Activation,
        hook_in: str = "mlp.hook_in",
        hook_out: str = "hook_mlp_out",
        reading: ModelReading | None = None,
    ) -> None:
        super().__init__()
        weights: dict[str, Rows] = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
        if W_skip is not None:
            weights["W_skip"] = W_skip
        self._check_weights(weights)
        for hook in (hook_in, hook_out):
            if not hook or hook.startswith("blocks."):
                raise self._wrong(f'hooks are named inside their block, like "mlp.hook_in"; got "{hook}"')
        for name, weight in weights.items():
            if isinstance(weight, Tensor):
                # Kernels read whole rows, so rows must be contiguous.
                self.register_parameter(name, nn.Parameter(weight.detach().contiguous(), requires_grad=False))
            else:
                self._keep(name, weight)
        if W_skip is None:
            self.register_parameter("W_skip", None)
        # A buffer, so that thresholds follow the weights to another device or dtype.
        self.register_buffer("theta", None)
        self.activation = activation
        self.hook_in = hook_in
        self.hook_out = hook_out
        self.reading = reading

    @property
    def activation(self) -> Activation:
        return self._activation if self.theta is None else JumpReLU(self.theta)

    @activation.setter
    def activation(self, activation: Activation) -> None:
        self._check_activation(activation)
        theta = activation.theta if isinstance(activation, JumpReLU) else None
        self.theta = theta.detach().to(self.b_enc) if isinstance(theta, Tensor) else None
        self._activation = activation

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        return self.b_dec.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.b_enc.dtype

    @property
    def device(self) -> torch.device:
        return self.b_enc.device

    @torch.no_grad()
    def encode(self, x: Tensor) -> SparseActivations:
        """x Float[Tensor, '... d_in'] -> one row of features per vector, leading dimensions flattened in row-major
        order."""
        rows = self._rows("encode", x)
        activation = self.activation
        if isinstance(activation, JumpReLU) and self.theta is not None:
            activation = JumpReLU(self._compute(self.theta))
        if isinstance(self.W_enc, MappedRows):
            return encode_in_blocks(activation, rows, self.W_enc, self._compute(self.b_enc))
        return activation.encode(rows, self._compute(self.W_enc), self._compute(self.b_enc))

    @torch.no_grad()
    def preactivations(self, x: Tensor, rows: Tensor | Sequence[int], features: Tensor | Sequence[int]) -> Tensor:
        """h at chosen places: Float[Tensor, 'nnz'] for x Float[Tensor, '... d_in'] and row and feature ids Int[Tensor,
        'nnz'].

        The dot product is accumulated in float64 and rounded once: the canonical pre-activation that selection is
            defined by.
        """
        flat = self._rows("preactivations", x)
        row = torch.as_tensor(rows, device=flat.device).long()
        feature = torch.as_tensor(features, device=flat.device).long()
        if row.shape != feature.shape or row.ndim != 1:
            raise ValueError(
                "preactivations: rows and features must be two vectors of one length, got "
                f"{list(row.shape)} and {list(feature.shape)}"
            )
        step = max(1, GATHER_BYTES // (16 * self.d_in))
        parts = [
            (flat[r].double() * self.W_enc[f].double()).sum(1) + self.b_enc[f].double()
            for r, f in zip(row.split(step), feature.split(step), strict=True)
        ]
        return torch.cat(parts).to(flat.dtype)

    def weights(self) -> dict[str, Tensor]:
        """All weights in memory, whatever they lie in now."""
        found = {name: getattr(self, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip")}
        return {
            name: weight.detach() if isinstance(weight, Tensor) else weight[:]
            for name, weight in found.items()
            if weight is not None
        }

    def holding(self, features: Tensor) -> Self:
        """The layer with the decoder rows of these features Int[Tensor, 'n'] in memory: itself where all are."""
        if not isinstance(self.W_dec, MappedRows):
            return self
        layer = copy.copy(self)  # shares the parameters, of which a decoder in a file is none
        layer._keep("W_dec", self.W_dec.held(features))
        return layer

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for name in ("W_enc", "W_dec"):
            weight = getattr(self, name)
            if isinstance(weight, MappedRows):
                self._keep(name, weight.to(self.device, self.dtype))
        return self

    def _keep(self, name: str, rows: Rows) -> None:
        """A weight that is no parameter: it is not in memory, or not whole."""
        setattr(self, name, rows)

    def extra_repr(self) -> str:
        skip = ", skip" if self.W_skip is not None else ""
        rule = "JumpReLU" if isinstance(self.activation, JumpReLU) else repr(self.activation)
        sizes = f"{self.d_in} -> {self.d_sae} -> {' x '.join(map(str, self.W_dec.shape[1:]))}{skip}"
        mapped = [name for name in ("W_enc", "W_dec") if isinstance(getattr(self, name), MappedRows)]
        where = f", {' and '.join(mapped)} in a file" if mapped else ""
        return f"{sizes}, {rule}, {self.hook_in} -> {self.hook_out}, {self.dtype}{where}"

    def _compute(self, weight: Tensor) -> Tensor:
        return weight if weight.dtype in (torch.float32, torch.float64) else weight.float()

    def _rows(self, caller: str, x: Tensor) -> Tensor:
        if x.ndim < 1 or x.shape[-1] != self.d_in:
            raise ValueError(f"{caller}: x must be [..., d_in]=[..., {self.d_in}], got {list(x.shape)}")
        return x.reshape(-1, self.d_in).to(device=self.device, dtype=self._compute(self.b_enc).dtype)

    def _wrong(self, what: str) -> ValueError:
        return ValueError(f"{type(self).__name__}: {what}")

    def _check_weights(self, weights: Mapping[str, Rows]) -> None:
        W_enc, W_dec, axes = weights["W_enc"], weights["W_dec"], self.decoder_axes
        if W_enc.ndim != 2 or W_dec.ndim != len(axes):
            shapes = f"got {list(W_enc.shape)} and {list(W_dec.shape)}"
            wanted = "be matrices" if len(axes) == 2 else f"be [F, d_in] and [{', '.join(axes)}]"
            raise self._wrong(f"W_enc and W_dec must {wanted}, {shapes}")
        if 0 in W_enc.shape or 0 in W_dec.shape:
            raise self._wrong(f"no dimension may be empty, got W_enc {list(W_enc.shape)} and W_dec {list(W_dec.shape)}")
        # b_enc and b_dec cannot be transposed, so the sizes are read off them where they are vectors.
        F = weights["b_enc"].shape[0] if weights["b_enc"].ndim == 1 else W_enc.shape[0]
        d_out = weights["b_dec"].shape[0] if weights["b_dec"].ndim == 1 else W_dec.shape[-1]
        d_in = W_enc.shape[1] if W_enc.shape[0] == F else W_enc.shape[0]
        expected = {
            "W_enc": ("F, d_in", [F, d_in]),
            "b_enc": ("F", [F]),
            "W_dec": (", ".join(axes), [F, *W_dec.shape[1:-1], d_out]),
            "b_dec": ("d_out", [d_out]),
            "W_skip": ("d_out, d_in", [d_out, d_in]),
        }
        for name, weight in weights.items():
            label, shape = expected[name]
            if list(weight.shape) != shape:
                hint = " (transposed?)" if list(weight.shape) == shape[::-1] else ""
                raise self._wrong(f"{name} must be [{label}]={shape}, got {list(weight.shape)}{hint}")
            if weight.dtype not in DTYPES:
                raise self._wrong(f"{name} must be a floating point tensor, got {weight.dtype}")
            if weight.dtype != W_enc.dtype or weight.device != W_enc.device:
                raise self._wrong(
                    f"all weights must share one dtype and device; W_enc is {W_enc.dtype} on {W_enc.device}, "
                    f"{name} is {weight.dtype} on {weight.device}"
                )
            bad = int((~weight.isfinite()).sum()) if isinstance(weight, Tensor) else 0
            if bad:
                raise self._wrong(
                    f"{name} has {bad} NaN or infinite entries; these weights come from a diverged run or a damaged "
                    "file"
                )

    def _check_activation(self, activation: Activation) -> None:
        if isinstance(activation, TopK | BatchTopK) and activation.k > self.d_sae:
            raise self._wrong(f"k={activation.k} exceeds the {self.d_sae} features there are; choose k <= {self.d_sae}")
        if (
            isinstance(activation, JumpReLU)
            and isinstance(activation.theta, Tensor)
            and activation.theta.shape not in ((), (self.d_sae,))
        ):
            raise self._wrong(f"theta must be a number or [F]=[{self.d_sae}], got {list(activation.theta.shape)}")
