"""Explains the score of a window: the cosines of words with frames, and how much each of them counts."""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np

from waver.evaluation.embedding import tokenize_texts
from waver.model.embeddings import Embeddings
from waver.model.tokenizer import Tokenizer
from waver.runs.inputs import store_settings
from waver.runs.inspection.interaction import interaction_of
from waver.search.model import Model
from waver.search.serving.videos import Span, SpanReader, VideoError, jpeg

_PICTURE_SIZE = 128
_END_OF_WORD = "</w>"
_SENTENCES = {
    "dp": "This model (interaction dp) compares one embedding of the whole query with the mean of the frames, so no word "
    "and no frame has a share of the score that could be shown.",
    "xti": "This model (interaction xti) scores the query and all frames together in a transformer, so no word and no frame "
    "has a share of the score that could be shown.",
    "ti": "The score is the mean of each word's best frame and of each frame's best word. All words count the same, and all "
    "frames do.",
    "wti": "The score is the mean of each word's best frame and of each frame's best word, by weights that the model has "
    "learned.",
    "xclip": "The score is the mean of four cosines, of query or words with the video or its frames. It follows the largest "
    "cosines of this table most.",
}
"""Interaction -> how it computes a score."""


@dataclass(frozen=True)
class Explanation:
    """Why a window has its score."""

    interaction: str
    """Name of the interaction of the model."""
    sentence: str
    """How the interaction computes the score."""
    similarity: float
    words: list[str] | None
    """The tokens of the query as the model reads them; None if the model does not compare words with frames."""
    cosines: list[list[float]] | None
    """Of each word (row) with each frame (column)."""
    word_weights: list[float] | None
    """None if all count the same."""
    frame_weights: list[float] | None


def explain(model: Model, tokenizer: Tokenizer, query: str, text: Embeddings, video: Embeddings) -> Explanation:
    """Explains the score of a query and a window.

    Args:
        model: of the index.
        tokenizer: of the model.
        query: the sentence.
        text: its embeddings, one item.
        video: those of the window, one item.
    """
    kind = model.config.similarity.kind
    parts = None
    if not model.student.interaction.compares_sentence:
        ids, mask = tokenize_texts([query], model.config, tokenizer)
        words = [word.removesuffix(_END_OF_WORD) for word in tokenizer.strings(ids[0, : int(mask.sum())].tolist())]
        parts = interaction_of(model.student, words, text, video)
    if parts is None:
        similarity = model.similarity(text, video).item()
        return Explanation(kind, _SENTENCES[kind], similarity, None, None, None, None)
    return Explanation(
        kind,
        _SENTENCES[kind],
        parts.similarity,
        list(parts.tokens),
        parts.cosines.tolist(),
        _as_list(parts.text_weights),
        _as_list(parts.video_weights),
    )


def pictures_of(reader: SpanReader, model: Model, span: Span, num_frames: int) -> dict[str, Any]:
    """Decodes the frames that the model saw of a window, for display above the columns of the table.

    Returns:
        `frames`: time (seconds in the video) and picture (data URL) of each, or null; `note`: why there are none, or null.
    """
    try:
        clip = reader.frames(span, store_settings(model.config))
    except VideoError as error:
        return {"frames": None, "note": str(error)}
    if len(clip.frames) != num_frames:
        return {
            "frames": None,
            "note": "The frames cannot be shown: the video is decoded differently than when it was indexed.",
        }
    frames = zip(clip.times_s, clip.frames, strict=True)
    return {"frames": [{"time_s": time_s, "picture": _data_url(frame)} for time_s, frame in frames], "note": None}


def _data_url(frame: np.ndarray) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg(frame, _PICTURE_SIZE)).decode()}"


def _as_list(weights: np.ndarray | None) -> list[float] | None:
    return None if weights is None else weights.tolist()
