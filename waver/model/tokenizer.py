"""Tokenizes captions and phrases with CLIP's byte-pair encoding."""

# pyright: reportMissingTypeStubs=false
# (open_clip has no stubs.)

import functools

import open_clip
import torch
from jaxtyping import Bool, Int
from torch import Tensor

VOCABULARY_SIZE = 49408
"""Number of tokens that CLIP's tokenizer knows."""


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


@functools.cache
def _clip_tokenizer() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer()
