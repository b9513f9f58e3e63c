"""The word list as a `transformers` tokenizer, so that `to_tokens`, `to_string` and `to_str_tokens` work.

Text is lower-cased, a four-digit year is read as two tokens ("1732" -> 17 32), brackets need no spaces around them,
and a word outside the list is refused by name. This module imports transformers; import it only where a tokenizer is
needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pullback.zoo.tinymix.vocab import BOS, PAD, UNK


class WordTokenizer(PreTrainedTokenizerFast):
    """Refuses unknown words with ValueError: <unk> was never trained, so answers after it would mean nothing."""

    def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        for one in [text] if isinstance(text, str) else text:
            self.refuse_unknown_words(one)
        return super()._encode_plus(text, *args, **kwargs)

    def refuse_unknown_words(self, text: Any) -> None:
        """Raise ValueError naming the first word of `text` (str) that is not in the vocabulary."""
        if not isinstance(text, str):
            raise ValueError(f"tiny-mix encodes plain strings, got {type(text).__name__}; join the words with spaces")
        encoding = self.backend_tokenizer.encode(text, add_special_tokens=False)
        for token, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
            if token == UNK and text[start:end] != UNK:
                raise ValueError(
                    f"tiny-mix knows {len(self)} words and {text[start:end]!r} is not one of them; "
                    "pullback.zoo.tinymix.vocab.WORDS lists them"
                )


def build_tokenizer(words: Sequence[str], n_ctx: int) -> WordTokenizer:
    """A tokenizer over `words` (ids in their order) that prepends <bos>."""
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    backend.normalizer = normalizers.Lowercase()
    brackets_and_digit_pairs = pre_tokenizers.Split(Regex(r"[()\[\]]|\d\d"), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), brackets_and_digit_pairs])
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])])
    return WordTokenizer(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=BOS,  # the model writes no end of text; TransformerLens wants the name filled
        pad_token=PAD,
        unk_token=UNK,
        model_max_length=n_ctx,
        padding_side="right",
        # TransformerLens re-reads a tokenizer from its name unless it prepends <bos> already, and asks for both.
        add_bos_token=True,
        name_or_path="tiny-mix",
    )
