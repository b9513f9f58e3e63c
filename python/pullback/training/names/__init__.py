"""The settings of other trainers under their own names."""

from pullback.training.names import saelens, sparsify

__all__ = ["saelens", "sparsify"]
