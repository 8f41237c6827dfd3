"""Pre-trains the backbone of the experiment on stills with short texts of all vocabularies, as CLIP reads wide text.

    python -m experiments.style_world.pretraining

It continues from the small CLIP of the quickstart, which knows fewer colours and shapes, and writes `backbone.safetensors`
beside this file. The texts name one to four of colour, shape, motion and size, each attribute in the words of some
vocabulary, so that no vocabulary is tied to a writer's sentences. No triple of validation or test is shown. The same machine
writes the same weights.
"""

import itertools
import math
import random
import tempfile
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from experiments.style_world.world import split_scenes
from experiments.style_world.writers import (
    COLOUR_WORDS,
    COLOURS,
    MOTION_WORDS,
    MOTIONS,
    SHAPE_WORDS,
    SHAPES,
    SIZES,
    VOCABULARIES,
)
from waver.config import load_config
from waver.model.backbone import Backbone
from waver.model.pretrained.weights import load_backbone
from waver.model.tokenizer import find_tokenizer
from waver.quickstart.alt_text import AltText
from waver.quickstart.captions import with_articles
from waver.quickstart.pretrain import (
    attribute_codes,
    contrastive_loss,
    embed_frames,
    embed_texts,
    lr_factor,
    positives,
    stills,
)
from waver.quickstart.scenes import BACKGROUNDS, Scene
from waver.quickstart.weights import pack, write_backbone

STEPS, PEAK_LR = 2400, 2e-3
_IMAGE_SIZE, _BATCH_SIZE, _FRAMES_PER_SCENE, _TEXTS_PER_SCENE = 64, 64, 4, 24
_FRAMES = {
    "common": ("{}", "the video shows {}", "we see {}", "a photo of {}"),
    "exact": ("{}", "in this recording the camera shows {}", "we can observe {}", "the footage documents how {}"),
    "friendly": ("{}", "haha i see {}", "omg look at {}!!", "lol so {}"),
    "rare": ("{}", "someone painted {}", "one spots {}", "note that {}"),
    "image": ("{}", "behold {}", "o {}", "sing of {}"),
}
"""Vocabulary -> what its texts begin with."""
_NOUNS = ("thing", "one", "something", "figure")
_ATTRIBUTES = {"colour": COLOURS, "shape": SHAPES, "motion": MOTIONS, "size": SIZES}


def pretraining_scenes(seed: int = 0) -> list[Scene]:
    """Returns a scene for each triple of train with each size and background."""
    triples = sorted({(scene.colour, scene.shape, scene.motion) for scene in split_scenes()["train"]})
    rng = random.Random(f"pre-training/{seed}")
    return [
        Scene(*triple, background, size, seed=rng.getrandbits(32))
        for triple, background, size in itertools.product(triples, BACKGROUNDS, SIZES)
    ]


def alt_text(scene: Scene, rng: random.Random) -> AltText:
    """Returns a text that names some attributes of a scene, each in the words of some vocabulary."""
    names = rng.sample(tuple(_ATTRIBUTES), rng.choice((1, 1, 2, 3, 4, 4)))
    if names == ["size"]:
        names.append(rng.choice(("colour", "shape", "motion")))
    tables = {"colour": COLOUR_WORDS, "shape": SHAPE_WORDS, "motion": MOTION_WORDS, "size": {}}

    def say(name: str) -> str:
        value = getattr(scene, name)
        if name not in names or name == "size":
            return value if name in names else ""
        return rng.choice(tables[name][rng.choice(VOCABULARIES)][value])

    colour, shape, motion, size = (say(name) for name in ("colour", "shape", "motion", "size"))
    thing = shape or rng.choice(_NOUNS)
    if colour and rng.random() < 0.4:
        parts = [rng.choice(("a", "the")), size, thing, rng.choice(("of", "in", "with")), colour]
    else:
        parts = [rng.choice(("a", "the", "this")), size, colour, thing]
    if motion:
        parts = [*parts, rng.choice(("", "that", "and it", "as it", "she")), motion]
    if names == ["motion"]:
        parts = [rng.choice(("it", "she", "")), motion]
    text = rng.choice(_FRAMES[rng.choice(VOCABULARIES)]).format(" ".join(part for part in parts if part))
    values = {name: getattr(scene, name) if name in names else None for name in _ATTRIBUTES}
    return AltText(with_articles(text), background=None, **values)


class Lessons:
    """Scenes and texts about each, as tokens, from which batches are drawn.

    Args:
        scenes: to be described.
        seed: of the texts.
    """

    def __init__(self, scenes: list[Scene], seed: int = 0):
        rng = random.Random(f"texts/{seed}")
        texts = [alt_text(scene, rng) for scene in scenes for _ in range(_TEXTS_PER_SCENE)]
        ids, masks = find_tokenizer("ViT-B-32")([text.text for text in texts], max_words=32)
        shape = (len(scenes), _TEXTS_PER_SCENE, -1)
        self.token_ids, self.masks = ids.view(shape), masks.view(shape)
        self.text_codes, self.scene_codes = (
            attribute_codes(texts, _ATTRIBUTES).view(shape),
            attribute_codes(scenes, _ATTRIBUTES),
        )

    def draw(self) -> tuple[Int[Tensor, " B"], Int[Tensor, "B N"], Bool[Tensor, "B N"], Bool[Tensor, "B B"]]:
        """Draws scenes and a text of each: (scenes, token ids, mask, whether each text describes each scene)."""
        chosen = torch.randperm(len(self.scene_codes))[:_BATCH_SIZE]
        turn = torch.randint(_TEXTS_PER_SCENE, chosen.shape)
        mask = self.masks[chosen, turn]
        longest = int(mask.sum(1).max())
        described = positives(self.text_codes[chosen, turn], self.scene_codes[chosen])
        return chosen, self.token_ids[chosen, turn, :longest], mask[:, :longest], described


def main() -> None:
    """Pre-trains the backbone and writes it beside this file."""
    torch.set_num_threads(1)
    state = {name: tensor.detach() for name, tensor in pretrain().clip.state_dict().items()}
    embedding = state["token_embedding.weight"]
    rows = embedding.abs().sum(dim=1).nonzero()[:, 0]
    pack(state | {"token_embedding.weight": embedding[rows]}, rows, Path(__file__).with_name("backbone.safetensors"))


def pretrain(seed: int = 0, steps: int = STEPS) -> Backbone:
    """Trains both towers, from the weights of the quickstart's backbone, with CLIP's loss.

    A text describes every scene of the batch that has the attributes it names; all of them are positives of it.
    """
    torch.manual_seed(seed)
    scenes = pretraining_scenes(seed)
    lessons = Lessons(scenes, seed)
    backbone = _quickstart_backbone()
    _draw_new_embeddings(backbone, lessons.token_ids)
    frames = stills(scenes, _IMAGE_SIZE, num_frames=_FRAMES_PER_SCENE, seed=seed)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * lr_factor(step, steps)
        chosen, token_ids, mask, described = lessons.draw()
        images = embed_frames(backbone, frames[chosen, torch.randint(_FRAMES_PER_SCENE, chosen.shape)][:, None])
        logits = backbone.logit_scale.exp() * embed_texts(backbone, token_ids, mask) @ images.T
        loss = contrastive_loss(logits, described)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            backbone.logit_scale.clamp_(max=math.log(100))
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} of {steps}, loss {loss.item():.3f}", flush=True)
    return backbone


def _quickstart_backbone() -> Backbone:
    config = load_config(Path(__file__).with_name("experiment.yaml"))
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "backbone.safetensors"
        write_backbone(weights)
        return load_backbone(config.model.backbone, str(weights), image_size=_IMAGE_SIZE)


def _draw_new_embeddings(backbone: Backbone, token_ids: Tensor) -> None:
    """Draws embeddings of word pieces that the quickstart's backbone does not know: they are zero there."""
    with torch.no_grad():
        table = backbone.text.token_embedding.weight
        used = token_ids.unique()
        new = used[(table[used] == 0).all(dim=1)]
        table[new] = torch.randn(len(new), table.shape[1]) * table[table.abs().sum(1) > 0].std()


if __name__ == "__main__":
    main()
