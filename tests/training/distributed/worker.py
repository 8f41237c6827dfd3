"""One worker of a process group, run by test_workers.py as a process of its own: steps and evaluations."""

import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from waver.config import ExperimentConfig, load_config
from waver.data.clip_store import ClipStore
from waver.evaluation.evaluate import EvaluationOptions, evaluate
from waver.knowledge.soft_targets import PhraseSpace, Spaces
from waver.knowledge.store import Knowledge
from waver.model.towers import recompute_activations
from waver.training import parallel
from waver.training.build import Training, build_student, freeze_student
from waver.training.step import compute_gradients, loss_weights, make_batch, weighted_sum

# Overrides of each step: every interaction and aggregator, and every use of knowledge.
STEPS = {
    "wti seqTransf": {"similarity.kind": "wti", "model.temporal": "seqTransf"},
    "dp": {"similarity.kind": "dp", "model.temporal": "none"},
    "ti seqLSTM": {"similarity.kind": "ti", "model.temporal": "seqLSTM"},
    "xclip": {"similarity.kind": "xclip", "model.temporal": "none"},
    "xti": {"similarity.kind": "xti", "model.temporal": "none"},
    "informed": {"knowledge.top_k": 2, "loss.knowledge": 0.5},
    "gated": {"knowledge.top_k": 2, "knowledge.fusion": "gated", "model.frame_norm": "layer"},
    "dropout": {"knowledge.top_k": 2, "knowledge.dropout": 0.5, "loss.distill": 1.0},
    "distilled": {
        "knowledge.top_k": 1,
        "knowledge.at_inference": False,
        "loss.knowledge": 0.3,
        "loss.distill": 2.0,
        "loss.temperature": 2.0,
    },
    "sigmoid": {"loss.kind": "sigmoid", "knowledge.top_k": 2, "loss.knowledge": 0.5},
    "soft targets": {
        "knowledge.top_k": 2,
        "knowledge.at_inference": False,
        "loss.phrases_video": 0.4,
        "loss.phrases_text": 0.3,
        "loss.keep": 0.2,
    },
    "shared captions": {"loss.shared_captions": "ignored", "knowledge.top_k": 2, "loss.knowledge": 0.5},
    "adapters": {"model.lora.rank": 2},
    "frozen": {"train.freeze": ["vision", "text.1"]},
}
BY_PARTS = {"train.micro_batch_size": 2, "train.grad_checkpointing": True}


def main(rank: int, folder: Path) -> None:
    """Computes in the groups of one, two and three workers, in those that have this rank."""
    torch.set_num_threads(1)
    for world_size in range(rank + 1, 4):
        compute(rank, world_size, folder)


def compute(rank: int, world_size: int, folder: Path) -> None:
    if world_size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous-{world_size}", rank=rank, world_size=world_size
        )
    captions, store, knowledge = pickle.loads((folder / "experiment.pickle").read_bytes())
    # Of different lengths: the longest captions of the workers' shares differ.
    texts = [f"{text}{' again' * (row % 4)}" for row, text in enumerate(captions["caption"].to_pylist())]
    texts[captions["clip_id"].to_pylist().index("v06")] = texts[0]  # v00 and v06, of different workers
    captions = captions.set_column(captions.schema.get_field_index("caption"), "caption", pa.array(texts))
    results = {}
    for name, overrides in STEPS.items():
        config = load_config(folder / "experiment.yaml", overrides)
        by_parts = load_config(folder / "experiment.yaml", overrides | BY_PARTS)
        for dtype in (torch.float32, torch.float64):
            results[name, dtype] = step(config, captions, store, knowledge, dtype)
            # Two workers have as many parts as each other, of three the first has more.
            results[f"{name} by parts", dtype] = step(by_parts, captions, store, knowledge, dtype)
    for name in ("wti seqTransf", "informed"):
        config = load_config(folder / "experiment.yaml", STEPS[name])
        student = build_student(config).eval()
        for split in ("test", "validation"):
            results[name, split] = evaluate(
                student, captions, store, config, split=split, knowledge=knowledge, options=EvaluationOptions(top_k=3)
            )
    asked = {"evaluate.dsl": True, "evaluate.qb_norm": True, "evaluate.chunk_size": 3}
    config = load_config(folder / "experiment.yaml", STEPS["dp"] | asked)
    one_each = captions.filter([index == 0 for index in captions["caption_index"].to_pylist()])
    results["rescored"] = evaluate(
        build_student(config).eval(),
        one_each,
        store,
        config,
        split="test",
        options=EvaluationOptions(rescore=True, excused=torch.tensor([[0, 1], [1, 0]])),
    )
    torch.save(results, folder / f"results-{world_size}-{rank}.pt")
    if world_size > 1:
        dist.destroy_process_group()


def step(
    config: ExperimentConfig, captions: pa.Table, store: ClipStore, knowledge: Knowledge, dtype: torch.dtype
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(loss of the global batch, gradient of each parameter) of 7 pairs, a number that no worker count divides."""
    clip_ids = store.ok_clip_ids()[:7]
    rows = np.array([captions["clip_id"].to_pylist().index(clip_id) for clip_id in clip_ids])
    mine = parallel.shard(7, parallel.rank(), parallel.world_size())
    batch = make_batch(captions, rows[mine], store.read(clip_ids[mine]), config, num_pairs=7, knowledge=knowledge)
    assert batch.token_mask.shape[1] < config.text.max_words, "captions are cut to the longest of the share"
    clips, words, spaces = teaching(knowledge, dtype)
    batch = replace(batch, teacher_clips=clips[mine], teacher_captions=words[mine])
    student = build_student(config).to(dtype)
    freeze_student(student, config)
    if student.fusion is not None and student.fusion.gated:
        torch.nn.init.constant_(student.fusion.attended_gate, 0.7)
        torch.nn.init.constant_(student.fusion.output_gate, 0.7)
    if config.train.grad_checkpointing:
        recompute_activations(student.backbone)
    forward = DistributedDataParallel(student) if parallel.world_size() > 1 else student
    training = Training(student, forward, knowledge.phrase_embeddings().to(dtype), None, None, num_steps=9)
    training.spaces = spaces
    terms, _ = compute_gradients(training, batch, config)
    gradients = {name: p.grad for name, p in student.named_parameters() if p.requires_grad}
    return parallel.all_reduce(weighted_sum(terms, loss_weights(training, config)), "sum"), gradients


def teaching(knowledge: Knowledge, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, Spaces]:
    """Unit vectors of a teacher of width 5 for seven clips and their captions, and the phrases in both spaces."""
    draw = torch.Generator().manual_seed(3)

    def unit(*shape: int) -> torch.Tensor:
        return F.normalize(torch.randn(*shape, generator=draw, dtype=torch.float64), dim=-1).to(dtype)

    clips, words, theirs, ours = unit(7, 5), unit(7, 5), unit(knowledge.num_phrases, 5), unit(knowledge.num_phrases, 32)
    return (
        clips,
        words,
        Spaces(
            PhraseSpace(theirs, clips.mean(0), words.mean(0), 0.1, 0.2),
            PhraseSpace(ours, unit(4, 32).mean(0), unit(4, 32).mean(0), 0.3, 0.4),
        ),
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
