"""Pre-trains the small CLIP of `waver quickstart` on stills with noisy alt texts, as CLIP was pre-trained.

    python -m waver.quickstart.pretrain waver/quickstart/backbone.safetensors

The backbone then knows the words of every writing style, while retrieval is trained on captions of a few styles. No
scene has a triple of colour, shape and motion of validation or test of the quickstart's world. The same seed gives the
same weights on the same machine.
"""

import argparse
import itertools
import logging
import math
import random
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from waver.config import ExperimentConfig, load_config
from waver.data.video.resizing import Resizing, resize_frames
from waver.model.architecture import find_architecture
from waver.model.backbone import Backbone
from waver.model.interaction import last_token
from waver.model.tokenizer import find_tokenizer
from waver.quickstart.alt_text import LESSONS, AltText, alt_text
from waver.quickstart.drawing import draw
from waver.quickstart.scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, Scene, split_scenes
from waver.quickstart.weights import pack
from waver.quickstart.world import WORLD

logger = logging.getLogger(__name__)

_FRAMES_PER_SCENE = 4
_TEXTS_PER_SCENE = 12
"""In each lesson; a step pairs a random frame of a scene with a random text of it."""
_LESSON_SHARES = (10 / 13, 3 / 13)
"""Share of the steps for each lesson of the curriculum `LESSONS`."""
_PEAK_LRS = (3e-3, 2e-3)
"""Peak learning rate of each lesson, between a linear warm-up and a cosine decay to 0."""
_MAX_WORDS = 32
_ATTRIBUTES = {"colour": COLOURS, "shape": SHAPES, "motion": MOTIONS, "background": BACKGROUNDS, "size": SIZES}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="safetensors file of the packed weights")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    scenes = pretraining_scenes(copies=2, seed=arguments.seed)
    state, rows = pretrain(scenes, steps=arguments.steps, seed=arguments.seed)
    pack(state, rows, arguments.output)


def pretraining_scenes(*, copies: int, seed: int) -> list[Scene]:
    """Returns `copies` scenes of each combination of attributes whose triple is in train of the quickstart's world."""
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
    """Trains a CLIP from scratch with a symmetric contrastive loss.

    Most texts are short and describe many stills. Every still in the batch that a text describes is a positive of it, with
    equal weight: with one positive per text, the towers learned colours alone in the same number of steps.

    Args:
        scenes: to be drawn and described.
        steps: total number of optimizer steps.
        seed: of weights, stills, texts and batches.
        batch_size: scenes per step.
        report_every: steps between two log lines.

    Returns:
        The state dict with open_clip's names, and the rows of CLIP's vocabulary that its token embedding has.
    """
    torch.manual_seed(seed)
    config = load_config(Path(__file__).with_name("experiment.yaml"))
    size, batch_size = config.preprocessing.size, min(batch_size, len(scenes))
    frames = stills(scenes, size, num_frames=_FRAMES_PER_SCENE, seed=seed)
    texts = _texts(scenes, seed)
    token_ids, masks, rows = _tokenize(texts)
    text_codes = attribute_codes(texts, _ATTRIBUTES).view(*token_ids.shape[:3], -1)
    scene_codes = attribute_codes(scenes, _ATTRIBUTES)
    logger.info(
        f"{len(scenes)} scenes, {len(scenes) * _FRAMES_PER_SCENE} frames, {len(texts)} texts, {len(rows)} word pieces"
    )
    backbone = _small_vocabulary_backbone(config, len(rows))
    done = 0
    for lesson, (share, peak_lr) in enumerate(zip(_LESSON_SHARES, _PEAK_LRS, strict=True)):
        num_steps = round(share * steps)
        optimizer = torch.optim.AdamW(backbone.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(lr_factor, num_steps=num_steps))
        for _ in range(num_steps):
            chosen = torch.randperm(len(scenes))[:batch_size]
            turn = torch.randint(_TEXTS_PER_SCENE, chosen.shape)
            words, mask = token_ids[lesson, chosen, turn], masks[lesson, chosen, turn]
            longest = int(mask.sum(1).max())
            images = embed_frames(backbone, frames[chosen, torch.randint(_FRAMES_PER_SCENE, chosen.shape)][:, None])
            logits = (
                backbone.logit_scale.exp() * embed_texts(backbone, words[:, :longest], mask[:, :longest]) @ images.T
            )
            loss = contrastive_loss(logits, positives(text_codes[lesson, chosen, turn], scene_codes[chosen]))
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


def _small_vocabulary_backbone(config: ExperimentConfig, num_tokens: int) -> Backbone:
    """Builds the backbone with a token embedding of the tokens that occur, which makes steps faster."""
    architecture = find_architecture(config.model.backbone)
    architecture["text_cfg"] = {**architecture["text_cfg"], "vocab_size": num_tokens}
    return Backbone(architecture, config.preprocessing.size)


def positives(text_codes: Int[Tensor, "B 5"], scene_codes: Int[Tensor, "B 5"]) -> Bool[Tensor, "B B"]:
    """Returns whether a text (row) describes a scene (column): they agree in all attributes that the text mentions."""
    texts = text_codes[:, None]
    return ((texts == scene_codes) | (texts < 0)).all(-1)


def contrastive_loss(logits: Float[Tensor, "B B"], positives: Bool[Tensor, "B B"]) -> Float[Tensor, ""]:
    """Returns the symmetric cross entropy, with the targets spread equally over the positives of each query."""
    targets = positives.float()
    t2v = functional.cross_entropy(logits, targets / targets.sum(1, keepdim=True))
    v2t = functional.cross_entropy(logits.T, targets.T / targets.T.sum(1, keepdim=True))
    return (t2v + v2t) / 2


def embed_frames(backbone: Backbone, frames: UInt8[Tensor, "B F 3 H W"]) -> Float[Tensor, "B D"]:
    """Returns a unit vector per clip: the normalised mean of the normalised embeddings of its frames."""
    mask = torch.ones(frames.shape[:2], dtype=torch.bool)
    encoded = functional.normalize(backbone.encode_frames(backbone.pixels(frames), mask), dim=-1)
    return functional.normalize(encoded.mean(1), dim=-1)


def embed_texts(backbone: Backbone, token_ids: Int[Tensor, "B N"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B D"]:
    """Returns a unit vector per text: the normalised embedding of its end token."""
    return functional.normalize(last_token(backbone.encode_tokens(token_ids, mask), mask), dim=-1)


def stills(scenes: list[Scene], size: int, *, num_frames: int, seed: int) -> UInt8[Tensor, "S F 3 H W"]:
    """Returns `num_frames` random frames of each scene in order of time, resized and cropped as by ingest."""
    rng = random.Random(f"stills/{seed}")
    clips = []
    for scene in scenes:
        frames = draw(scene)
        chosen = sorted(rng.sample(range(len(frames)), num_frames))
        clips.append(resize_frames(np.stack([np.asarray(frames[i]) for i in chosen]), Resizing(size)))
    return torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3).contiguous()


def _texts(scenes: list[Scene], seed: int) -> list[AltText]:
    """Returns `_TEXTS_PER_SCENE` texts for each lesson and scene, in this order."""
    rng = random.Random(f"texts/{seed}")
    return [
        alt_text(scene, rng, lesson)
        for lesson in range(len(LESSONS))
        for scene in scenes
        for _ in range(_TEXTS_PER_SCENE)
    ]


def _tokenize(texts: list[AltText]) -> tuple[Int[Tensor, "G S T N"], Bool[Tensor, "G S T N"], Int[Tensor, " rows"]]:
    """Tokenizes the texts of all lessons (G) and scenes (S), with T texts of N tokens each.

    Returns:
        The tokens as indices into the rows, their mask, and the rows: the tokens of CLIP's vocabulary that occur.
    """
    token_ids, masks = find_tokenizer("ViT-B-32")([text.text for text in texts], max_words=_MAX_WORDS)
    rows, token_rows = token_ids.unique(return_inverse=True)
    shape = (len(LESSONS), -1, _TEXTS_PER_SCENE, _MAX_WORDS)
    return token_rows.view(shape), masks.view(shape), rows


def lr_factor(step: int, num_steps: int) -> float:
    """Returns the learning rate at a step, relative to its peak."""
    return min((step + 1) / min(100, num_steps), 0.5 + 0.5 * math.cos(math.pi * step / num_steps))


def attribute_codes(
    items: Sequence[Scene | AltText], attributes: Mapping[str, tuple[str, ...]]
) -> Int[Tensor, "M attributes"]:
    """Returns the attributes (name -> its values) as indices into their values; -1 for those that a text leaves out."""
    return torch.tensor(
        [
            [
                -1 if (value := getattr(item, name)) is None else values.index(value)
                for name, values in attributes.items()
            ]
            for item in items
        ]
    )


if __name__ == "__main__":
    main()
