"""Dictionaries of the experiment: the phrases of the seen writers, and three others beside which they are judged.

seen       phrases of the training captions by seen writers, as `waver vocabulary` extracts them
shuffled   the words of these phrases, shuffled among them: the same words in phrases without meaning
random     phrases of the same lengths, of words drawn from all words of these captions
all        phrases of the training captions by all writers: an oracle, marked as leaky
"""

import random
from pathlib import Path


def shuffled_words(phrases: list[str], seed: int = 0) -> list[str]:
    """Returns phrases of the same lengths with the same words in another order."""
    words = [word for phrase in phrases for word in phrase.split()]
    random.Random(f"shuffled/{seed}").shuffle(words)
    return _cut(words, phrases)


def random_words(phrases: list[str], captions: list[str], seed: int = 0) -> list[str]:
    """Returns phrases of the same lengths with words drawn evenly from those of captions."""
    known = sorted({word for caption in captions for word in caption.split()})
    rng = random.Random(f"random/{seed}")
    return _cut([rng.choice(known) for phrase in phrases for _ in phrase.split()], phrases)


def write_phrases(path: Path, phrases: list[str]) -> None:
    """Writes a phrase on each line, for `vocabulary.file`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{phrase}\n" for phrase in phrases), encoding="utf-8")


def _cut(words: list[str], phrases: list[str]) -> list[str]:
    remaining = iter(words)
    return [" ".join(next(remaining) for _ in phrase.split()) for phrase in phrases]
