"""Tokenizes captions and phrases with CLIP's byte-pair encoding."""

# pyright: reportMissingTypeStubs=false
# (open_clip has no stubs.)

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import open_clip
import torch
from jaxtyping import Bool, Int
from torch import Tensor

VOCABULARY_SIZE = 49408
"""Number of tokens that CLIP's tokenizer knows."""
MAX_POSITIONS = 77
"""Number of tokens that CLIP's text encoders read."""


def tokenize(
    texts: list[str], *, max_words: int, prompt: str | None = None
) -> tuple[Int[Tensor, "B N"], Bool[Tensor, "B N"]]:
    """Tokenizes texts; longer ones are truncated and keep their end token.

    Args:
        texts: B texts.
        max_words: N, the number of tokens per text, start and end token included.
        prompt: template with {} in place of the text; None for none.

    Returns:
        Token ids, padded with 0, and their mask (True for valid tokens).
    """
    if prompt is not None:
        texts = [prompt.replace("{}", text) for text in texts]
    tokenizer = _clip_tokenizer()
    ids = tokenizer(texts, context_length=max_words)
    # Id 0 is padding and the exclamation mark, so the mask ends at the end token, not at the first zero. It ends at the last
    # end token, since a caption may contain the words "<end_of_text>".
    num_after_end = (ids == tokenizer.eot_token_id).flip(1).int().argmax(dim=1, keepdim=True)
    return ids, torch.arange(max_words) < max_words - num_after_end


@dataclass(frozen=True)
class Truncation:
    """How much of some texts the tokenizer cuts off."""

    num_texts: int
    num_cut: int
    """Texts that are longer than `max_words` tokens."""
    num_merged: int
    """Texts that are cut and then equal another text, which was different."""
    longest: int
    """Number of tokens of the longest text, start and end token included."""

    def describe(self, max_words: int) -> str:
        """Says how many texts are cut, and which setting reads all of them."""
        cut = f"{self.num_cut} of {self.num_texts} captions are longer than text.max_words = {max_words} tokens and are cut"
        if self.num_merged:
            cut += f", and {self.num_merged} of them become equal to another caption"
        if self.longest <= MAX_POSITIONS:
            return f"{cut}; text.max_words={self.longest} reads all"
        return f"{cut}; the longest has {self.longest} tokens, and CLIP reads at most {MAX_POSITIONS} (text.max_words)"


def measure_truncation(texts: Sequence[str], *, max_words: int, prompt: str | None = None) -> Truncation:
    """Counts the texts that `tokenize` would cut if it were called with the same arguments."""
    tokens = {text: _encode(text if prompt is None else prompt.replace("{}", text)) for text in set(texts)}
    kept = max_words - 2  # without the start and the end token
    of_kept: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for ids in tokens.values():
        of_kept.setdefault(ids[:kept], set()).add(ids)
    cut = [tokens[text] for text in texts if len(tokens[text]) > kept]
    return Truncation(
        num_texts=len(texts),
        num_cut=len(cut),
        num_merged=sum(len(of_kept[ids[:kept]]) > 1 for ids in cut),
        longest=max(map(len, tokens.values()), default=0) + 2,
    )


def _encode(text: str) -> tuple[int, ...]:
    """Returns the tokens of a text, without start and end token."""
    return tuple(_clip_tokenizer().encode(text))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType, reportUnknownVariableType]


@functools.cache
def _clip_tokenizer() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer()
