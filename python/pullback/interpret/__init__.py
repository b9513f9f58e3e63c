"""What features mean: cards of every feature from a corpus."""

from pullback.interpret.features import FeaturePack, write_feature_pack

__all__ = ["FeaturePack", "write_feature_pack"]
