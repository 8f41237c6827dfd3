"""Which embeddings a stage needs, and making them without Ray."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from logs import logged
from safetensors.torch import load_file, save_file

from waver.config import load_config
from waver.data.clip import Clip
from waver.data.clip_store import ClipStore
from waver.data.clip_store_writer import write_block
from waver.data.embedded_clips import EmbeddingPaths
from waver.data.embedding_store import EmbeddingError, EmbeddingStore
from waver.data.ledger import DecodedClip
from waver.runs import embeddings
from waver.runs.embeddings import (
    Needs,
    all_needs,
    check_embeddings,
    embed_missing,
    evaluation_needs,
    run_in_process,
    training_needs,
)
from waver.runs.inputs import load_captions, open_store
from waver.tools.lock import LockedError, hold_lock
from waver.training.build import build_student, freeze_student
from waver.training.plan import training_rows

FROZEN = {"train.backbone_lr_scale": 0}


@pytest.fixture
def project(tmp_path, build_project, captions, teacher_weights) -> Path:
    return build_project(tmp_path, captions, teacher_weights)


def opened(project: Path, **overrides):
    config = load_config(project / "experiment.yaml", {**FROZEN, **overrides})
    captions = load_captions(config)
    return config, captions, open_store(config, captions)


@pytest.mark.parametrize(
    ("overrides", "frozen"),
    [
        ({"train.backbone_lr_scale": 1}, ()),
        ({}, ("vision", "text")),
        ({"train.backbone_lr_scale": 1, "train.freeze": ["vision"]}, ("vision",)),
        ({"train.backbone_lr_scale": 1, "train.freeze": ["text", "vision.1"]}, ("text",)),
        ({"train.backbone_lr_scale": 1, "model.lora": {"rank": 2, "where": "text"}}, ("vision",)),
        ({"model.lora": {"rank": 2, "where": "both"}}, ()),
    ],
)
def test_frozen_towers(load_knowing, overrides, frozen):
    settings = {"knowledge.top_k": 0, **FROZEN, **overrides}
    config = load_knowing(**settings)
    assert config.frozen_towers == frozen
    student = build_student(config, config.model.weights)
    freeze_student(student, config)
    towers = {"vision": student.backbone.clip.visual, "text": student.backbone.clip.transformer}
    still = tuple(name for name, tower in towers.items() if not any(p.requires_grad for p in tower.parameters()))
    assert still == frozen, "what training does with the parameters"


def test_training_reads_its_clips_and_those_of_validation(project):
    config, captions, store = opened(project, **{"train.epochs": 2})
    rows = training_rows(captions, store)
    needs = training_needs(config, captions, store, rows)
    splits = captions.filter(pc.is_in(captions["split"], pa.array(["train", "validation"])))
    assert set(needs.clip_ids) == set(splits["clip_id"].to_pylist()) - {"v03"}
    of_train = captions.take(rows)
    # 13 clips in 2 epochs read 26 of 26 captions.
    assert (len(of_train), len(set(needs.clip_ids) - {f"v{n}" for n in range(14, 19)})) == (26, 13)
    assert not needs.makes_captions
    assert training_needs(opened(project, **{"train.epochs": 3})[0], captions, store, rows).makes_captions
    always = opened(project, **{"embeddings.captions": True})[0]
    assert training_needs(always, captions, store, rows).makes_captions
    assert set(training_needs(always, captions, store, rows).captions) == set(
        of_train["caption"].to_pylist() + splits.filter(pc.equal(splits["split"], "validation"))["caption"].to_pylist()
    )


def test_what_is_trained_or_not_wanted_is_not_embedded(project):
    config, captions, store = opened(project, **{"train.backbone_lr_scale": 1})
    rows = training_rows(captions, store)
    assert training_needs(config, captions, store, rows) == Needs()
    never = opened(project, **{"embeddings.use": "never"})[0]
    assert training_needs(never, captions, store, rows) == Needs()
    text = opened(project, **{"train.backbone_lr_scale": 1, "train.freeze": ["text"], "embeddings.captions": True})[0]
    needs = training_needs(text, captions, store, rows)
    assert (needs.clip_ids, needs.captions is None) == (None, False)
    words = opened(project, **{"embeddings.captions": False})[0]
    assert training_needs(words, captions, store, rows).captions is None
    assert embed_missing(config, store, Needs()) == EmbeddingPaths()


def test_a_zero_shot_model_is_frozen_and_an_imported_one_has_other_weights(project, tmp_path):
    config, captions, store = opened(project, **{"train.backbone_lr_scale": 1})
    for kind, reads in (("zero-shot", True), ("imported", False), (None, False)):
        checkpoint = tmp_path / str(kind)
        checkpoint.mkdir()
        if kind:
            (checkpoint / "origin.json").write_text(f'{{"kind": "{kind}", "model": "m", "notes": []}}')
        needs = evaluation_needs(config, captions, store, "test", checkpoint=checkpoint)
        assert (needs.clip_ids is not None) == reads
        frozen = config.model_copy(update={"train": config.train.model_copy(update={"backbone_lr_scale": 0})})
        reads_frozen = evaluation_needs(frozen, captions, store, "test", checkpoint=checkpoint).clip_ids is not None
        assert reads_frozen == (kind != "imported")


def test_captions_that_are_read_once_are_read_only_if_all_are_stored(project):
    config, captions, store = opened(project)
    texts = captions["caption"].to_pylist()
    once = Needs(None, texts, makes_captions=False)
    assert embed_missing(config, store, once, progress=False) == EmbeddingPaths()
    embed_missing(config, store, Needs(None, texts[:5], makes_captions=True), progress=False)
    assert embed_missing(config, store, once, progress=False) == EmbeddingPaths()
    embed_missing(config, store, Needs(None, texts, makes_captions=True), progress=False)
    assert embed_missing(config, store, once, progress=False) == EmbeddingPaths(tokens=config.token_embeddings)


def test_work_that_was_stopped_continues(project, monkeypatch):
    monkeypatch.setattr(embeddings, "_CLIPS_PER_BLOCK", 4)
    config, captions, store = opened(project)
    needs = all_needs(config, captions, store)
    number = []

    def stop_after_two(worker, arguments, blocks):
        for done in run_in_process(worker, arguments, blocks):
            number.append(done)
            yield done
            if len(number) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_missing(config, store, needs, run=stop_after_two, progress=False)
    half = EmbeddingStore(config.frame_embeddings)
    assert (len(half), half.manifest["complete"]) == (8, False)
    with logged() as said:
        paths = embed_missing(config, store, needs, progress=False)
    assert "embedding 18 of 26 clips once" in said[0]
    assert (
        EmbeddingStore(paths.frames).manifest | {"complete": True, "num_items": 26}
        == EmbeddingStore(paths.frames).manifest
    )
    with logged() as said:
        embed_missing(config, store, needs, progress=False)
    assert not [line for line in said if "once" in line], "nothing is missing"


def test_a_clip_that_was_decoded_again_is_embedded_again(project):
    config, captions, store = opened(project)
    needs = all_needs(config, captions, store)
    before = embed_missing(config, store, needs, progress=False).open(store).read(["v00", "v01"])[0]
    path = dict(zip(store.ledger["clip_id"].to_pylist(), store.ledger["path"].to_pylist(), strict=True))["v01"]
    frames = np.random.default_rng(9).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    clip = Clip(frames, (0.0, 1.0), 25.0, 16, 16, "test")
    write_block(store.path, store.settings, [DecodedClip("v01", path, 0.0, clip)])
    again = ClipStore(store.path)
    with logged() as said:
        after = embed_missing(config, again, needs, progress=False).open(again).read(["v00", "v01"])[0]
    assert "embedding 1 of 26 clips" in said[0]
    np.testing.assert_array_equal(after[0], before[0])
    assert np.abs(after[1] - before[1]).max() > 0.01


def test_embeddings_of_other_weights_are_refused(project):
    config, captions, store = opened(project)
    clips = embed_missing(config, store, all_needs(config, captions, store), progress=False).open(store)
    student = build_student(config, config.model.weights)
    check_embeddings(config, student.backbone, clips)
    changed = load_file(project / "clip.safetensors")
    for name, what in (("visual.proj", "frames"), ("text_projection", "captions")):
        save_file(changed | {name: changed[name] + 1e-6}, project / "clip.safetensors")
        other = build_student(config, config.model.weights)
        with pytest.raises(EmbeddingError, match=r"was made from something else \(tower: .* requested\)") as error:
            check_embeddings(config, other.backbone, clips)
        assert ("captions-" in str(error.value)) == (what == "captions")
    shutil.rmtree(config.token_embeddings / "items")
    with pytest.raises(EmbeddingError, match="was made from something else"):
        embed_missing(config, store, all_needs(config, captions, store), progress=False)
    with torch.no_grad():
        student.logit_scale.add_(1)
    check_embeddings(config, student.backbone, clips)


def test_a_second_writer_is_refused_and_readers_are_not(project):
    config, captions, store = opened(project)
    needs = all_needs(config, captions, store)
    with hold_lock(config.frame_embeddings, "embedding"), pytest.raises(LockedError):
        embed_missing(config, store, needs, progress=False)
    embed_missing(config, store, needs, progress=False)
    with hold_lock(config.frame_embeddings, "embedding"), hold_lock(config.token_embeddings, "embedding"):
        assert embed_missing(config, store, needs, progress=False).open(store).read(["v00"])[1].tolist() == [1]


def test_what_the_values_depend_on_decides_the_folder(project):
    config = opened(project)[0]
    for setting, same_frames, same_tokens in (
        ({"train.lr": 1e-3}, True, True),
        ({"text.max_words": 10}, True, False),
        ({"model.pixel_mean": [0.4, 0.4, 0.4]}, False, True),
        ({"embeddings.precision": "bf16"}, False, False),
        ({"model.weights": None}, False, False),
        ({"video.max_frames": 2}, False, True),
    ):
        other = load_config(project / "experiment.yaml", {**FROZEN, **setting})
        assert (other.frame_embeddings == config.frame_embeddings) == same_frames, setting
        assert (other.token_embeddings == config.token_embeddings) == same_tokens, setting
    random = [load_config(project / "experiment.yaml", {"model.weights": None, "seed": seed}) for seed in (0, 1)]
    assert random[0].frame_embeddings != random[1].frame_embeddings, "random weights depend on the seed"
