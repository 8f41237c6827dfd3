"""Loads the model of a run, to embed and compare texts and videos: `waver.load`."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from waver.config import ExperimentConfig
from waver.data.batch import frames_to_tensor
from waver.data.clip import Clip
from waver.data.clip_store import StoreSettings
from waver.data.video.decoder import Decoder
from waver.evaluation.embedding import (
    TEXTS_PER_BATCH,
    embed_batch,
    embed_tokens,
    similarity_in_blocks,
    tokenize_texts,
)
from waver.knowledge.control import draw
from waver.knowledge.errors import KnowledgeError
from waver.knowledge.store import Knowledge
from waver.knowledge.teacher import match_clips
from waver.model.embeddings import Embeddings
from waver.runs.checkpoint import check_dictionary, checkpoint_config, checkpoint_knowledge, load_student
from waver.runs.folder import find_checkpoint
from waver.runs.inputs import store_settings
from waver.tools.object_store import display_path
from waver.training.build import build_teacher, build_tokenizer, local_device

_TIMEOUT_S = 60.0


class Model:
    """Embeds texts and videos with the student of a checkpoint, and compares them as `waver evaluate` does.

    If the model uses knowledge at inference, it matches each video with the phrases of its dictionary first.

    Args:
        checkpoint: checkpoint folder.
        config: its configuration, see `waver.runs.checkpoint.checkpoint_config`.

    Attributes:
        checkpoint, config: as given.
        student: the neural network, in evaluation mode.

    Raises:
        CheckpointError: if the checkpoint cannot be loaded.
    """

    def __init__(self, checkpoint: Path, config: ExperimentConfig):
        self.checkpoint, self.config = checkpoint, config
        self.student = load_student(checkpoint, config).eval().requires_grad_(False).to(local_device(config))

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.student.logit_scale.device

    @cached_property
    def _phrases(self) -> "_Phrases | None":
        """Built when the first clip is embedded: texts need no teacher."""
        return _Phrases(self.checkpoint, self.config) if self.config.informed_at_inference else None

    @property
    def teacher_settings(self) -> StoreSettings | None:
        """Decoding settings of the frames that the teacher reads to match phrases; None if the model's own frames do."""
        theirs = store_settings(self.config.teacher)
        is_read = self.config.informed_at_inference and theirs.key != store_settings(self.config).key
        return theirs if is_read else None

    @cached_property
    def _tokenizer(self) -> Any:
        return build_tokenizer(self.config)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """Embeds the tokens of each text.

        Scores of texts that are embedded in different calls may differ by rounding.
        """
        tokens = tokenize_texts(texts, self.config, self._tokenizer)
        return embed_tokens(self.student, *tokens, self.config, batch_size=min(len(texts), TEXTS_PER_BATCH))

    def describe_cut(self, text: str) -> str | None:
        """Returns a sentence that says how much of a long text the model reads; None if it reads all of it."""
        max_words = self.config.text.max_words
        (tokens,) = self._tokenizer.encode([text], prompt=self.config.text.prompt)
        if not self._tokenizer.is_cut(tokens, max_words=max_words):
            return None
        room = max_words - len(self._tokenizer.before) - len(self._tokenizer.after)
        return (
            f"The query is too long: the model reads its first {room} words and parts of words, and not the other "
            f"{len(tokens) - room}."
        )

    @torch.no_grad()
    def embed_frames(
        self,
        frames: UInt8[np.ndarray, "B F H W 3"],
        num_frames: Int[np.ndarray, " B"],
        of_teacher: tuple[UInt8[np.ndarray, "B G I I 3"], Int[np.ndarray, " B"]] | None = None,
    ) -> Embeddings:
        """Embeds clips from their pixels.

        All batches have the same size, so the embedding of a clip does not depend on the other clips, to the last bit.

        Args:
            frames: see `waver.data.clip_store.ClipStore.read`.
            num_frames: number of valid frames of each clip.
            of_teacher: frames and numbers of frames of the same clips, decoded with `teacher_settings`; None where that is.

        Raises:
            KnowledgeError: if the knowledge that the model uses at inference is missing or has another dictionary.
        """
        assert (of_teacher is None) == (self.teacher_settings is None), "the teacher has the frames that it reads"
        their_frames, their_numbers = of_teacher or (frames, num_frames)
        size = self.config.evaluate.batch_size
        parts = []
        for first in range(0, len(frames), size):
            rows = slice(first, first + size)
            some, numbers = frames[rows], num_frames[rows]
            phrases = self._phrases.of(their_frames[rows], their_numbers[rows]) if self._phrases else None
            pixels, mask = (tensor.to(self.device) for tensor in frames_to_tensor(some, numbers))
            parts.append(embed_batch(self.student, pixels, mask, phrases, self.config, size=size))
        return Embeddings.concatenate(parts)

    def embed_videos(
        self, videos: Sequence[Path | str], spans: Sequence[tuple[float, float]] | None = None
    ) -> Embeddings:
        """Embeds videos, each as one clip. A child process decodes them, one after the other.

        Args:
            videos: files.
            spans: start and end, in seconds, of the part of each to embed; None for whole videos.

        Raises:
            ClipError: if a video cannot be decoded.
        """
        wanted = [settings for settings in (store_settings(self.config), self.teacher_settings) if settings]
        with Decoder(_TIMEOUT_S) as decoder:
            stacks = [_decode(decoder, settings, videos, spans) for settings in wanted]
        return self.embed_frames(*stacks[0], *stacks[1:])

    @torch.no_grad()
    def similarity(self, text: Embeddings, video: Embeddings) -> Float[Tensor, "T V"]:
        """Computes the similarity of every text with every video, as `waver evaluate` does; without the logit scale."""
        return similarity_in_blocks(self.student, text, video)


def load(run: Path | str, overrides: Mapping[str, Any] | None = None) -> Model:
    """Loads the best model of a run, or the model of a checkpoint.

    Args:
        run: folder of a run or a checkpoint.
        overrides: dotted key of the configuration -> value, such as `{"storage.path": "elsewhere"}`.

    Raises:
        WaverError: if there is no checkpoint, or it cannot be loaded.
    """
    checkpoint = find_checkpoint(Path(run))
    return Model(checkpoint, checkpoint_config(checkpoint, overrides))


def _decode(
    decoder: Decoder,
    settings: StoreSettings,
    videos: Sequence[Path | str],
    spans: Sequence[tuple[float, float]] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes videos, or parts of them, to frames and numbers of frames."""
    clips = [
        decoder.read_clip(
            video,
            start_s=start_s,
            end_s=end_s,
            frames_per_second=settings.frames_per_second,
            max_frames=settings.max_frames,
            target=settings.target,
        )
        for video, (start_s, end_s) in zip(videos, spans or [(None, None)] * len(videos), strict=True)
    ]
    return _stack(clips, settings.max_frames)


def _stack(clips: Sequence[Clip], max_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Stacks clips of up to `max_frames` frames into one array, filled up with zeros."""
    frames = np.zeros((len(clips), max_frames, *clips[0].frames.shape[1:]), np.uint8)
    for row, clip in enumerate(clips):
        frames[row, : len(clip.frames)] = clip.frames
    return frames, np.array([len(clip.frames) for clip in clips], np.int32)


class _Phrases:
    """Matches clips with phrases of the dictionary, by the frozen teacher, since no knowledge folder has these clips.

    Under a control of the run (`knowledge.control`), clips get phrases of matched clips instead: for `constant` those of the
    clip that the model was trained with; for `shuffled` those of a clip drawn by the pixels, and never the best phrases of
    the clip itself.
    """

    def __init__(self, checkpoint: Path, config: ExperimentConfig):
        knowledge = Knowledge(config.knowledge_store)
        check_dictionary(knowledge, checkpoint)
        self._knowledge, self._control, self._seed = knowledge, config.knowledge.control, config.seed
        self._constant_clip = (checkpoint_knowledge(checkpoint) or {}).get("constant_clip")
        if self._control == "constant" and self._constant_clip is None:
            raise KnowledgeError(
                f"knowledge.control = constant, but {display_path(checkpoint)} was not trained with constant phrases: "
                "search with the control of its run"
            )
        self._teacher = build_teacher(config.teacher)
        self._top_k = config.knowledge.top_k
        device = self._teacher.device
        self._embeddings = knowledge.phrase_embeddings("student").to(device)
        self._unit = F.normalize(knowledge.phrase_embeddings("teacher").to(device), dim=-1)
        mean = knowledge.clip_mean()
        self._mean = mean.to(device) if mean is not None else None

    def of(self, frames: UInt8[np.ndarray, "B F H W 3"], num_frames: Int[np.ndarray, " B"]) -> Float[Tensor, "B K D"]:
        """Returns the student's embeddings of the phrases of each clip, best first; the teacher reads these frames."""
        if self._control == "constant":
            assert self._constant_clip is not None, "the model was trained with it"
            return self._embeddings[self._knowledge.phrase_ids([self._constant_clip] * len(frames), self._top_k)]
        clips = self._teacher.embed_clips(frames, num_frames).to(self._teacher.device)
        ids, _ = match_clips(clips, self._unit, self._top_k, mean=self._mean)
        if self._control == "shuffled":
            ids = self._shuffled(ids.cpu(), frames, num_frames)
        return self._embeddings[ids.to(self._embeddings.device)]

    def _shuffled(
        self, own: Int[Tensor, "B K"], frames: UInt8[np.ndarray, "B F H W 3"], num_frames: Int[np.ndarray, " B"]
    ) -> Int[Tensor, "B K"]:
        """Returns the phrases of a matched clip for each clip, the next one if they are its own."""
        matched = self._knowledge.phrase_ids(self._knowledge.matches["clip_id"].to_pylist(), self._top_k)
        chosen = []
        for phrases, pixels, number in zip(own, frames, num_frames, strict=True):
            row = draw(self._seed, hashlib.sha256(pixels[:number].tobytes()).hexdigest()) % len(matched)
            others = torch.cat([matched[row:], matched[:row]])
            chosen.append(others[(others != phrases).any(1).int().argmax()])
        return torch.stack(chosen)
