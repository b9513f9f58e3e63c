"""Feature packs: where each feature is active, how strongly, and what it says; for all features in one pass."""

from pullback.interpret.features.collect import pack_nbytes, write_feature_pack
from pullback.interpret.features.pack import FeaturePack

__all__ = ["FeaturePack", "pack_nbytes", "write_feature_pack"]
