"""One transcoder: a sparse stand-in for the MLP of one layer (Dunefsky et al., arXiv 2406.11944; skip: Paulo et al.,
arXiv 2501.18823)."""

from __future__ import annotations

from torch import Tensor

from pullback.ops import SparseActivations, decode_csr
from pullback.transcoders.features import FeatureLayer
from pullback.transcoders.lazy import in_memory


class Transcoder(FeatureLayer):
    """y = act(x W_enc^T + b_enc) W_dec + b_dec (+ x W_skip^T)

    An autoencoder is the case in which `hook_in` and `hook_out` name the same place. See `FeatureLayer` for dtypes and
    gradients.

    Args:
        W_enc: Float[Tensor, 'F d_in']
        b_enc: Float[Tensor, 'F']
        W_dec: Float[Tensor, 'F d_out']
        b_dec: Float[Tensor, 'd_out']
        W_skip: Float[Tensor, 'd_out d_in'] or None
        activation: TopK, BatchTopK, JumpReLU or ReLU.
        hook_in: place the input is read from, as named inside `blocks.{l}.`
        hook_out: place the output stands in for.
        reading: how the model was read in training, if known.

    Raises:
        ValueError: shapes or dtypes disagree, a weight is NaN or infinite, k exceeds F, or a hook name is not relative
            to its block.
    """

    decoder_axes = ("F", "d_out")

    def decode(self, acts: SparseActivations) -> Tensor:
        """n rows of features -> Float[Tensor, 'n d_out'], without the skip path. Differentiable in values, W_dec and
        b_dec."""
        if acts.n_features != self.d_sae:
            raise ValueError(
                f"decode: activations have {acts.n_features} features, this transcoder has {self.d_sae}: "
                "from another layer?"
            )
        acts, W_dec = in_memory(acts, self.W_dec)
        return decode_csr(acts, self._compute(W_dec), self._compute(self.b_dec))

    def forward(self, x: Tensor) -> Tensor:
        """x Float[Tensor, '... d_in'] -> Float[Tensor, '... d_out']: the reconstruction, skip path included."""
        return self.reconstruct(self.encode(x), x)

    def reconstruct(self, acts: SparseActivations, x: Tensor) -> Tensor:
        """Features of x Float[Tensor, '... d_in'], a row a vector -> Float[Tensor, '... d_out'], skip path included."""
        y = self.decode(acts)
        if self.W_skip is not None:
            y = y + self._rows("reconstruct", x) @ self._compute(self.W_skip).T
        return y.view(*x.shape[:-1], self.d_out)
