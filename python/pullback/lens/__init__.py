"""The one seam to TransformerLens: hooks, weights, norms, patterns; frozen forward passes; the replacement model."""

from pullback.lens.adapter import INPUT_SITES, OUTPUT_SITES, Lens, as_lens
from pullback.lens.compat import check_compatible, must_be_attention_saes, must_be_transcoders
from pullback.lens.inserted import Features, Inserted, inserted
from pullback.lens.offload import offloaded, on_disk
from pullback.lens.open import open_transformers
from pullback.lens.stand_ins import stand_ins
from pullback.lens.trace import LayerTrace, Trace, trace, traces
from pullback.lens.weights import LayerWeights, Norm

__all__ = [
    "Features",
    "INPUT_SITES",
    "Inserted",
    "LayerTrace",
    "LayerWeights",
    "Lens",
    "Norm",
    "OUTPUT_SITES",
    "Trace",
    "as_lens",
    "check_compatible",
    "inserted",
    "must_be_attention_saes",
    "must_be_transcoders",
    "offloaded",
    "on_disk",
    "open_transformers",
    "stand_ins",
    "trace",
    "traces",
]
