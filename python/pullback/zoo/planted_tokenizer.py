"""The planted model's words as a `transformers` tokenizer. Import it only where a tokenizer is needed: this is slow."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pullback.zoo.planted_words import IDS, WORDS
from pullback.zoo.tinymix.vocab import BOS, PAD, UNK


class PlantedTokenizer(PreTrainedTokenizerFast):
    """Refuses unknown words with ValueError: no formula says what the model would make of them."""

    def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        for one in [text] if isinstance(text, str) else text:
            if not isinstance(one, str):
                raise ValueError(f"planted encodes plain strings, got {type(one).__name__}; join the words with spaces")
            unknown = [word for word in one.lower().split() if word not in IDS]
            if unknown:
                raise ValueError(
                    f"planted knows {len(WORDS)} words and '{unknown[0]}' is not one of them; "
                    "pullback.zoo.truth('planted').words lists them"
                )
        return super()._encode_plus(text, *args, **kwargs)


def build_tokenizer(n_ctx: int) -> PlantedTokenizer:
    """One token a word, lower-cased, <bos> in front."""
    backend = Tokenizer(models.WordLevel(IDS, unk_token=UNK))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, IDS[BOS])])
    return PlantedTokenizer(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=BOS,  # nothing ends a text here; TransformerLens wants the name filled
        pad_token=PAD,
        unk_token=UNK,
        model_max_length=n_ctx,
        padding_side="right",
        add_bos_token=True,  # TransformerLens re-reads a tokenizer from its name unless it prepends <bos> already
        name_or_path="planted",
    )
