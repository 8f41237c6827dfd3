"""Synthetic embeddings of long films and of captions that describe them, with the structure of real ones.

They keep what makes search hard:

- All frames share a direction, and so do all words (the cone effect of two-tower models). Frames of different films have
  cosines of about 0.5, and words have cosines of about 0.15 with most frames.
- Few directions have most of the variance: that of direction i is proportional to 1 / (i + 10).
- A film has one of many topics. Their frequencies follow Zipf's law, so a few topics are those of most films.
- A film is a sequence of scenes. The frames of a scene have cosines of 0.9. Neighbouring windows share half of their frames.
- A caption has a few words that describe its window and many that do not. Its weights are peaked on the former.

Films are made one after the other from the seed, so any number of windows needs the memory of one chunk.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

from waver.model.embeddings import Embeddings

WINDOWS_PER_FILM = 250
_TOPICS, _AREAS = 5000, 60
_SCENE_FRAMES = (6, 60)
_CONE = 0.5
"""Share of the squared length of a frame or a word that lies in the common direction."""
_CONES_COSINE = 0.3
"""Cosine of the common direction of words with that of frames."""
_TOPIC, _FILM, _SCENE, _FRAME = 0.3, 0.25, 0.25, 0.2
"""Shares of the topic, the film, the scene and the frame itself in the variance of the rest of a frame."""
_WORDS = (8, 18)
_TELLING, _OTHER = (0.45, 0.75), (0.0, 0.25)
"""Cosines, without the common directions, with what the window shows: of words that describe it, and of other words."""
_SHARPNESS = 4.0


@dataclass(frozen=True)
class World:
    """What all films and captions of a seed have in common.

    Args:
        width: D.
        num_frames: F, frames of a window, at least two.
        seed: another seed makes another world.
    """

    width: int = 512
    num_frames: int = 12
    seed: int = 0

    def films(self, num_windows: int) -> Iterator[Float32[np.ndarray, "W F D"]]:
        """Yields the unit frames of the windows of a film, film by film, until there are `num_windows`."""
        base = self._base()
        for film, first in enumerate(range(0, num_windows, WINDOWS_PER_FILM)):
            yield self._film(film, base)[: num_windows - first]

    def captions(self, number: int, num_windows: int) -> Embeddings:
        """Draws captions of random windows. A caption describes the first frame that the window before does not have.

        Args:
            number: number of captions.
            num_windows: number of windows to choose from.
        """
        base, random = self._base(), np.random.default_rng([self.seed, 1])
        values = np.zeros((number, _WORDS[1], self.width), np.float32)
        mask = np.zeros((number, _WORDS[1]), bool)
        logits = np.full((number, _WORDS[1]), -np.inf, np.float32)
        for caption, window in enumerate(sorted(random.integers(num_windows, size=number).tolist())):
            film, position = divmod(window, WINDOWS_PER_FILM)
            shown = self._film(film, base)[position, self.num_frames // 2] - math.sqrt(_CONE) * base.frames
            shown = shown / np.linalg.norm(shown)
            length = int(random.integers(*_WORDS))
            telling = random.random(length) < 0.3
            telling[-1] = True  # the end token stands for the sentence
            cosines = np.where(telling, random.uniform(*_TELLING, length), random.uniform(*_OTHER, length))[:, None]
            noise = base.draw(random, length)
            rest = cosines * shown + np.sqrt(1 - cosines**2) * noise / np.linalg.norm(noise, axis=1, keepdims=True)
            words = math.sqrt(_CONE) * base.words + math.sqrt(1 - _CONE) * rest
            values[caption, :length] = words / np.linalg.norm(words, axis=1, keepdims=True)
            mask[caption, :length] = True
            logits[caption, :length] = 5 * cosines[:, 0] + random.normal(size=length) / 2
        weights = torch.from_numpy(logits).softmax(dim=1)
        return Embeddings(torch.from_numpy(values), torch.from_numpy(mask), weights)

    def weigh(self, values: Float[Tensor, "M F D"]) -> Embeddings:
        """Computes the weights of frames from their cosines with a fixed direction, like the weight head of a model."""
        head = np.random.default_rng([self.seed, 2]).normal(size=self.width).astype(np.float32)
        logits = F.normalize(values, dim=-1) @ torch.from_numpy(head) * _SHARPNESS
        mask = torch.ones(values.shape[:2], dtype=torch.bool)
        return Embeddings(values, mask, logits.softmax(dim=1))

    def _base(self) -> "_Base":
        random = np.random.default_rng([self.seed, 0])
        rotation = np.linalg.qr(random.normal(size=(self.width, self.width)))[0].astype(np.float32)
        spectrum = 1 / np.sqrt(np.arange(self.width) + 10)
        factors = (spectrum / np.linalg.norm(spectrum)).astype(np.float32)[:, None] * rotation
        frames, words = np.linalg.qr(random.normal(size=(self.width, 2)))[0].T.astype(np.float32)
        words = _CONES_COSINE * frames + math.sqrt(1 - _CONES_COSINE**2) * words
        areas = random.normal(size=(_AREAS, self.width)).astype(np.float32)
        own = random.normal(size=(_TOPICS, self.width)).astype(np.float32)
        topics = math.sqrt(0.4) * areas[random.integers(_AREAS, size=_TOPICS)] + math.sqrt(0.6) * own
        popularity = 1 / (np.arange(_TOPICS) + 20)
        return _Base(frames, words, factors, topics @ factors, popularity / popularity.sum())

    def _film(self, number: int, base: "_Base") -> Float32[np.ndarray, "W F D"]:
        random = np.random.default_rng([self.seed, 3, number])
        stride = self.num_frames // 2
        length = (WINDOWS_PER_FILM - 1) * stride + self.num_frames
        topic = base.topics[random.choice(len(base.topics), p=base.popularity)]
        cuts = np.cumsum(random.integers(*_SCENE_FRAMES, size=length))
        scene = np.searchsorted(cuts, np.arange(length), side="right")
        scenes = math.sqrt(_SCENE) * base.draw(random, int(scene[-1]) + 1) + math.sqrt(_FILM) * base.draw(random, 1)
        rest = math.sqrt(_TOPIC) * topic + scenes[scene] + math.sqrt(_FRAME) * base.draw(random, length)
        frames = math.sqrt(_CONE) * base.frames + math.sqrt(1 - _CONE) * rest
        frames /= np.linalg.norm(frames, axis=1, keepdims=True)
        return np.stack([frames[start : start + self.num_frames] for start in stride * np.arange(WINDOWS_PER_FILM)])


@dataclass(frozen=True)
class _Base:
    frames: Float32[np.ndarray, " D"]
    """Direction that all frames share."""
    words: Float32[np.ndarray, " D"]
    factors: Float32[np.ndarray, "D D"]
    """Turns independent normal values into vectors of expected length 1 with the spectrum of the world."""
    topics: Float32[np.ndarray, "K D"]
    popularity: Float[np.ndarray, " K"]

    def draw(self, random: np.random.Generator, number: int) -> Float32[np.ndarray, "n D"]:
        return random.standard_normal((number, len(self.factors)), np.float32) @ self.factors
