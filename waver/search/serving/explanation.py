"""Explains the score of a window: the cosine of each word with each frame, and the weights of words and frames."""

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
    "dp": "This model (interaction dp) compares one embedding of the whole query with the mean of the frames. It does not "
    "compare single words with single frames.",
    "xti": "This model (interaction xti) reads the query and all frames together in a transformer. It does not compare "
    "single words with single frames.",
    "ti": "The model takes the cosine of each word with its best frame, and of each frame with its best word. It averages "
    "over words and over frames, and the score is the mean of both averages. All words count the same, and all frames do.",
    "wti": "The model takes the cosine of each word with its best frame, and of each frame with its best word. It averages "
    "over words and over frames, by weights that the model has learned, and the score is the mean of both averages.",
    "xclip": "The score is the mean of four similarities: of the query with the video, of the words with the video, of the "
    "query with the frames, and of the words with the frames. In the last three, large cosines count more than small ones.",
}
"""Interaction -> how it computes a score."""


@dataclass(frozen=True)
class Explanation:
    """Explanation of the score of a window."""

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
    """One per word; None if all words count the same."""
    frame_weights: list[float] | None
    """One per frame; None if all frames count the same."""


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
    """Decodes the frames of a window that the model has seen, for display above the columns of the table.

    Returns:
        `frames`: time (seconds in the video) and picture (data URL) of each frame, or None; `note`: why there are no
        frames, or None.
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
