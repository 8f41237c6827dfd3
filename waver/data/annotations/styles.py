"""Keeps the training captions of some writing styles, so that a model can be tested in styles that it never read."""

from collections import Counter
from collections.abc import Collection, Sequence

from waver.data.annotations.captions import Caption
from waver.data.annotations.reading import Problems, excerpt

_NOT_TEST = ("train", "validation")


def keep_styles(captions: Sequence[Caption], styles: Collection[str], problems: Problems) -> list[Caption]:
    """Returns the captions without those of train and validation that have another style; test keeps all.

    Args:
        captions: all captions of the data set.
        styles: the styles to keep, at least one.
        problems: gets a problem for each style that no caption of train has, and for captions of unknown style.
    """
    counts = Counter(caption.style for caption in captions if caption.split == "train")
    known = ", ".join(f"{style} ({count})" for style, count in sorted(counts.items(), key=str) if style) or "none"
    for style in sorted(set(styles) - counts.keys()):
        problems.add("style that no caption of train has", f"data.train_styles: train has {known}", style)
    for caption in captions:
        if caption.split in _NOT_TEST and caption.style is None:
            remedy = (
                "data.train_styles needs the style of each caption of train and validation: fill in the column style"
            )
            problems.add("caption without style", remedy, f"{caption.clip_id}: {excerpt(caption.caption)}")
    return [caption for caption in captions if caption.split not in _NOT_TEST or caption.style in styles]
