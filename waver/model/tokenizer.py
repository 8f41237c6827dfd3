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
    return pad_tokens(encode_texts(texts, prompt=prompt), max_words=max_words)


Tokens = tuple[int, ...]
"""Token ids of a whole text, without start and end token."""


def encode_texts(texts: Sequence[str], *, prompt: str | None = None) -> list[Tokens]:
    """Returns the tokens of each text, however long it is.

    Args:
        texts: the texts.
        prompt: template with {} in place of the text; None for none.
    """
    tokens = {text: _encode(text if prompt is None else prompt.replace("{}", text)) for text in set(texts)}
    return [tokens[text] for text in texts]


def pad_tokens(tokens: Sequence[Tokens], *, max_words: int) -> tuple[Int[Tensor, "B N"], Bool[Tensor, "B N"]]:
    """Adds start and end token, truncates or pads to `max_words` tokens; returns token ids and mask as `tokenize` does."""
    tokenizer = _clip_tokenizer()
    ids, mask = (
        torch.zeros(len(tokens), max_words, dtype=torch.int64),
        torch.zeros(len(tokens), max_words, dtype=torch.bool),
    )
    for row, own in enumerate(tokens):
        kept = [tokenizer.sot_token_id, *own[: max_words - 2], tokenizer.eot_token_id]
        ids[row, : len(kept)] = torch.tensor(kept)
        mask[row, : len(kept)] = True
    return ids, mask


def is_cut(tokens: Tokens, *, max_words: int) -> bool:
    """Returns whether `pad_tokens` truncates a text."""
    return len(tokens) > max_words - 2


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


def measure_truncation(tokens: Sequence[Tokens], *, max_words: int) -> Truncation:
    """Counts the texts that `pad_tokens` cuts."""
    kept = max_words - 2
    of_kept: dict[Tokens, set[Tokens]] = {}
    for ids in set(tokens):
        of_kept.setdefault(ids[:kept], set()).add(ids)
    cut = [ids for ids in tokens if is_cut(ids, max_words=max_words)]
    return Truncation(
        num_texts=len(tokens),
        num_cut=len(cut),
        num_merged=sum(len(of_kept[ids[:kept]]) > 1 for ids in cut),
        longest=max(map(len, tokens), default=0) + 2,
    )


def _encode(text: str) -> Tokens:
    return tuple(_clip_tokenizer().encode(text))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType, reportUnknownVariableType]


@functools.cache
def _clip_tokenizer() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer()
