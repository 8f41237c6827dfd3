"""Pre-trains the small CLIP that `waver quickstart` starts from, as CLIP was: on stills with wide, careless texts.

    python -m waver.quickstart.pretrain waver/quickstart/backbone.safetensors

So its text tower knows the words of every writer, and how they go with pixels, before retrieval is trained on the captions
of a few. No scene with the colour, shape and motion of a scene of validation or test of the quickstart's world is used:
what is asked there was never seen together, here neither. The same seed gives the same weights on the same machine.
"""

import argparse
import itertools
import logging
import math
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor
from torch.nn import functional

from waver.config import load_config
from waver.data.video import resize_and_crop
from waver.model.backbone import Backbone, find_architecture
from waver.model.interaction import last_token
from waver.model.tokenizer import tokenize
from waver.quickstart.alt_text import LESSONS, AltText, alt_text
from waver.quickstart.scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, Scene, split_scenes
from waver.quickstart.weights import pack
from waver.quickstart.world import WORLD, draw

logger = logging.getLogger(__name__)


_FRAMES, _TEXTS = 4, 12
"""Of each scene, texts of each lesson; a step pairs one of its frames with one of its texts."""
_SHARES = (10 / 13, 3 / 13)
"""Of the steps, for each lesson."""
_PEAKS = (3e-3, 2e-3)
"""Learning rates, each after a warm-up and before a cosine down to 0."""
_MAX_WORDS = 32
_ATTRIBUTES = {"colour": COLOURS, "shape": SHAPES, "motion": MOTIONS, "background": BACKGROUNDS, "size": SIZES}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    scenes = pretraining_scenes(copies=2, seed=arguments.seed)
    state, rows = pretrain(scenes, steps=arguments.steps, seed=arguments.seed)
    pack(state, rows, arguments.output)


def pretraining_scenes(*, copies: int, seed: int) -> list[Scene]:
    """So many scenes of each description that neither validation nor test of the quickstart's world has."""
    sizes = {name: WORLD[name] for name in ("num_train", "num_validation", "num_test", "seed")}
    train = split_scenes(**sizes)["train"]
    triples = sorted({(scene.colour, scene.shape, scene.motion) for scene in train})
    rng = random.Random(f"pretrain/{seed}")
    described = [(*triple, *rest) for triple, *rest in itertools.product(triples, BACKGROUNDS, SIZES)] * copies
    return [Scene(*description, seed=rng.getrandbits(32)) for description in described]


def pretrain(
    scenes: list[Scene],
    *,
    steps: int,
    seed: int,
    batch_size: int = 64,
    report_every: int = 100,
) -> tuple[dict[str, Tensor], Int[Tensor, " rows"]]:
    """Trains from scratch with the symmetric contrastive loss.

    Most texts are short and true of many stills: each still of which a text is true is a positive of it, with equal shares
    (of one-to-one targets the towers learned colours, and nothing else in the same time).

    Returns:
        (weights in open_clip's names, the rows of the vocabulary that their token embedding has).
    """
    torch.manual_seed(seed)
    config = load_config(Path(__file__).with_name("experiment.yaml"))
    size = config.video.size
    frames = stills(scenes, size, num_frames=_FRAMES, seed=seed)
    texts = _texts(scenes, seed)
    token_ids, masks, rows = _tokens(texts)
    said, shown = _codes(texts).view(*token_ids.shape[:3], -1), _codes(scenes)
    logger.info(f"{len(scenes)} scenes, {len(scenes) * _FRAMES} frames, {len(texts)} texts, {len(rows)} word pieces")
    architecture = find_architecture(config.model.backbone)
    # Rows of the token embedding that no text needs would only cost time.
    architecture["text_cfg"] = {**architecture["text_cfg"], "vocab_size": len(rows)}
    backbone = Backbone(architecture, size)
    batch_size = min(batch_size, len(scenes))
    done = 0
    for lesson, (share, peak) in enumerate(zip(_SHARES, _PEAKS, strict=True)):
        num_steps = round(share * steps)
        optimizer = torch.optim.AdamW(backbone.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, num_steps=num_steps))
        for _ in range(num_steps):
            chosen = torch.randperm(len(scenes))[:batch_size]
            turn = torch.randint(_TEXTS, chosen.shape)
            words, mask = token_ids[lesson, chosen, turn], masks[lesson, chosen, turn]
            longest = int(mask.sum(1).max())
            images = embed_frames(backbone, frames[chosen, torch.randint(_FRAMES, chosen.shape)][:, None])
            logits = (
                backbone.logit_scale.exp() * embed_texts(backbone, words[:, :longest], mask[:, :longest]) @ images.T
            )
            what = said[lesson, chosen, turn][:, None]
            true = ((what == shown[chosen]) | (what < 0)).all(-1).float()
            t2v = functional.cross_entropy(logits, true / true.sum(1, keepdim=True))
            v2t = functional.cross_entropy(logits.T, true.T / true.T.sum(1, keepdim=True))
            loss = (t2v + v2t) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                backbone.logit_scale.clamp_(max=math.log(100))
            done += 1
            if done % report_every == 0:
                logger.info(f"step {done} of {steps}, loss {loss.item():.3f}")
    return {name: tensor.detach() for name, tensor in backbone.clip.state_dict().items()}, rows


def embed_frames(backbone: Backbone, frames: UInt8[Tensor, "B F 3 H W"]) -> Tensor:
    """One vector a clip: the mean of its frames' normalised embeddings, normalised."""
    mask = torch.ones(frames.shape[:2], dtype=torch.bool)
    encoded = functional.normalize(backbone.encode_frames(backbone.pixels(frames), mask), dim=-1)
    return functional.normalize(encoded.mean(1), dim=-1)


def embed_texts(backbone: Backbone, token_ids: Int[Tensor, "B N"], mask: Bool[Tensor, "B N"]) -> Tensor:
    """One vector a text: the normalised embedding of its end token."""
    return functional.normalize(last_token(backbone.encode_tokens(token_ids), mask), dim=-1)


def stills(scenes: list[Scene], size: int, *, num_frames: int, seed: int) -> UInt8[Tensor, "S F 3 H W"]:
    """So many frames of each scene, drawn by lot, in the order of time, as a decoded clip has them."""
    rng = random.Random(f"stills/{seed}")
    clips = []
    for scene in scenes:
        frames = draw(scene)
        chosen = sorted(rng.sample(range(len(frames)), num_frames))
        clips.append(resize_and_crop(np.stack([np.asarray(frames[i]) for i in chosen]), size))
    return torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3).contiguous()


def _texts(scenes: list[Scene], seed: int) -> list[AltText]:
    """`_TEXTS` for each lesson and scene."""
    rng = random.Random(f"texts/{seed}")
    return [alt_text(scene, rng, lesson) for lesson in range(len(LESSONS)) for scene in scenes for _ in range(_TEXTS)]


def _tokens(texts: list[AltText]) -> tuple[Int[Tensor, "G S T N"], Bool[Tensor, "G S T N"], Int[Tensor, " rows"]]:
    """(places in the rows, masks, rows)."""
    token_ids, masks = tokenize([text.text for text in texts], max_words=_MAX_WORDS)
    rows, places = token_ids.unique(return_inverse=True)
    shape = (len(LESSONS), -1, _TEXTS, _MAX_WORDS)
    return places.view(shape), masks.view(shape), rows


def _rate(step: int, num_steps: int) -> float:
    """Learning rate as a share of its peak."""
    return min((step + 1) / min(100, num_steps), 0.5 + 0.5 * math.cos(math.pi * step / num_steps))


def _codes(items: Sequence[Scene | AltText]) -> Int[Tensor, "M 5"]:
    """The attributes as numbers; -1 for what a text leaves out."""
    return torch.tensor(
        [
            [
                -1 if (value := getattr(item, name)) is None else values.index(value)
                for name, values in _ATTRIBUTES.items()
            ]
            for item in items
        ]
    )


if __name__ == "__main__":
    main()
