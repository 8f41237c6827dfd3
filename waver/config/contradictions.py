"""Which settings of an experiment cannot work together, although each is valid: in sentences with their dotted keys."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from waver.config.training import PHRASE_TERMS

if TYPE_CHECKING:  # the configuration checks itself with this module
    from waver.config.experiment import ExperimentConfig


def contradictions(config: "ExperimentConfig", *, stored: bool = False) -> Iterator[str]:
    """Yields a sentence for each combination of settings that cannot work; it names their dotted keys.

    Args:
        config: configuration of the experiment.
        stored: whether the settings are those of a run, which an older version trained without the newest checks.
    """
    yield from _of_losses(config)
    yield from _of_knowledge(config)
    yield from _of_teacher(config)
    yield from _of_weights(config)
    yield from _of_sizes(config, stored=stored)


def _of_losses(config: "ExperimentConfig") -> Iterator[str]:
    """Yields the contradictions between loss terms, and with what they read."""
    loss, knowledge = config.loss, config.knowledge
    for term in ("knowledge", "distill", *PHRASE_TERMS):
        if getattr(loss, term) and not knowledge.top_k:
            yield (
                f"loss.{term} = {getattr(loss, term):g} needs phrases, but knowledge.top_k = 0: set knowledge.top_k to "
                "1 or more"
            )
    if loss.distill and knowledge.fusion == "none":
        yield (
            f"loss.distill = {loss.distill:g} needs videos with fused phrases, but knowledge.fusion = none: set "
            "knowledge.fusion to gated"
        )
    if loss.distill and not knowledge.at_inference and not loss.informed:
        yield (
            f"loss.distill = {loss.distill:g} learns from videos with fused phrases, which nothing trains if "
            "loss.informed = 0: set loss.informed to 1"
        )
    if not any(weight for term, weight in loss.weights.items() if term != "informed"):
        yield "loss: all weights are 0, so nothing would be learned; set loss.contrastive to 1"
    elif not loss.contrastive and (not loss.distill or knowledge.at_inference):
        # Some parameters would have no gradient, for which DDP would wait.
        yield (
            "loss.contrastive = 0: no loss would train the retrieval of videos with captions; set it above 0, or set "
            "knowledge.at_inference to false and loss.distill above 0"
        )


def _of_knowledge(config: "ExperimentConfig") -> Iterator[str]:
    """Yields the contradictions between settings of the phrases."""
    knowledge = config.knowledge
    if knowledge.top_k > knowledge.num_matches:
        yield (
            f"knowledge.top_k = {knowledge.top_k} is more than knowledge.num_matches = {knowledge.num_matches}, the "
            "number of stored phrases per clip: raise knowledge.num_matches"
        )
    vocabulary = config.vocabulary
    if vocabulary.leaky and not vocabulary.file:
        yield (
            "vocabulary.leaky = true says where the phrases of vocabulary.file come from, which is null; of captions, "
            "vocabulary.splits decides: set vocabulary.leaky to false"
        )
    if vocabulary.file and (vocabulary.splits != ("train",) or vocabulary.min_count > 1):
        yield (
            "vocabulary.splits and vocabulary.min_count choose phrases of captions, but all phrases come from "
            "vocabulary.file: remove them, and set vocabulary.leaky to true if the file has phrases of validation or test"
        )
    if knowledge.control != "none" and not config.uses_knowledge:
        yield (
            f"knowledge.control = {knowledge.control} controls what phrases say, but the experiment uses no phrases: "
            "set knowledge.control to none, or use phrases (knowledge.top_k)"
        )


def _of_teacher(config: "ExperimentConfig") -> Iterator[str]:
    """Yields the contradictions with another teacher than the student's own backbone, and with how it matches."""
    knowledge, asked = config.knowledge, config.knowledge.teacher
    if knowledge.matching == "centred" and knowledge.released:
        yield (
            "knowledge.matching = centred, but knowledge.released names phrases that are matched already: set "
            "knowledge.matching to cosine"
        )
    if knowledge.matching == "centred" and config.embeddings.use == "never":
        yield (
            "knowledge.matching = centred reads the stored embeddings of the training clips, but embeddings.use = never: "
            "set it to auto"
        )
    if asked is None:
        return
    if asked.backbone not in (None, config.model.backbone) and asked.weights is None:
        yield (
            "knowledge.teacher.backbone is another than model.backbone, but knowledge.teacher.weights is not set: name a "
            "file of its weights or a pretrained tag"
        )
    if knowledge.released:
        yield (
            "knowledge.released names phrases that another teacher has matched, so that knowledge.teacher would match "
            "nothing: remove one of them"
        )
    elif not config.uses_knowledge and not config.uses_teacher:
        yield (
            "knowledge.teacher is set, but the experiment uses no phrases and no loss learns from the teacher: remove it, "
            "or use phrases (knowledge.top_k), loss.phrases_video, loss.phrases_text or loss.keep"
        )


def _of_weights(config: "ExperimentConfig") -> Iterator[str]:
    """Yields the contradictions with the weights of the backbone: pre-trained ones, and those that are trained."""
    loss = config.loss
    if config.uses_knowledge and config.model.weights is None:
        yield (
            "model.weights = null gives the teacher random weights, so its phrases would be meaningless: name a file or "
            "a pretrained tag, or set knowledge.top_k to 0"
        )
    elif loss.keep and config.teacher.model.weights is None:
        yield (
            f"loss.keep = {loss.keep:g} keeps what the pre-trained backbone knows, but model.weights = null: name a "
            "file or a pretrained tag, or set loss.keep to 0"
        )
    if config.uses_teacher and config.embeddings.use == "never":
        yield (
            "loss.phrases_video, loss.phrases_text and loss.keep read the frozen teacher's stored embeddings, but "
            "embeddings.use = never: set it to auto"
        )
    if config.model.lora and config.model.weights is None:
        yield (
            "model.lora adds to pre-trained weights, but model.weights = null: name a file or a pretrained tag, or set "
            "model.lora to null"
        )
    if config.model.lora and config.train.freeze:
        yield (
            f"train.freeze = [{', '.join(config.train.freeze)}]: model.lora freezes the pre-trained weights of both "
            "towers already: set train.freeze to [], and model.lora.where to the tower that gets additions"
        )


def _of_sizes(config: "ExperimentConfig", *, stored: bool) -> Iterator[str]:
    """Yields the contradictions between numbers of workers, pairs and pixels."""
    resources = config.resources
    if 0 < (resources.gpus_per_worker or 0) < 1 and resources.max_workers > 1:
        yield (
            f"resources.gpus_per_worker = {resources.gpus_per_worker:g} would put several workers of a run on one "
            "GPU, which NCCL does not support: use 1 GPU per worker, or 1 worker"
        )
    if 2 * resources.max_workers > config.train.global_batch_size:
        yield (
            f"resources.workers = {resources.max_workers} is more than half of train.global_batch_size = "
            f"{config.train.global_batch_size}: in a small batch some workers would have no pair; lower resources.workers"
        )
    backbone, size = config.model.backbone, config.video.size
    vision = backbone.get("vision_cfg") if isinstance(backbone, dict) else None
    asked = vision.get("image_size", size) if isinstance(vision, dict) else size
    if isinstance(asked, list | tuple) and len(set(asked)) > 1:
        yield f"model.backbone: its vision_cfg has image_size = {list(asked)}, but waver's frames are squares"
    elif size and asked not in (size, [size, size]) and not stored:
        yield (f"model.backbone: its vision_cfg has image_size = {asked}, but video.size = {size}: remove one of them")
