"""`knowledge.control`, from the configuration to training, evaluation, search and comparison."""

import json
import shutil

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from waver.config import load_config
from waver.evaluation.evaluate import evaluate
from waver.knowledge.store import Knowledge, KnowledgeError
from waver.runs.checkpoint import check_dictionary, save_checkpoint
from waver.runs.comparison import compare_runs
from waver.runs.inputs import open_knowledge
from waver.runs.results import result_of
from waver.runs.tracking.texts import data_text
from waver.runs.train import train
from waver.runs.train_loop import train_job
from waver.search import load
from waver.training.build import build_training
from waver.training.step import make_batch

SPLITS = ("train", "validation", "test")
KINDS = ("none", "shuffled", "constant")
CPU = torch.device("cpu")


@pytest.fixture
def controlled(load_knowing, knowledge, captions, store):
    """Returns an experiment under a control, with the knowledge that its stages open."""

    def make(kind: str, **overrides):
        config = load_knowing(**{"knowledge.control": kind, **overrides})
        shutil.copytree(knowledge.path, config.knowledge_store, dirs_exist_ok=True)
        return config, open_knowledge(config, captions, store, SPLITS)

    return make


def test_every_stage_opens_the_same_control(controlled, captions, store):
    config, opened = controlled("shuffled")
    for splits in (["test"], ["train"], ["train", "validation"]):
        again = open_knowledge(config, captions, store, splits)
        assert again.control == opened.control
    split_of = dict(zip(captions["clip_id"].to_pylist(), captions["split"].to_pylist(), strict=True))
    assert all(split_of[clip] == split_of[other] != "" for clip, other in opened.control.phrases_of.items())
    assert set(opened.control.phrases_of) == set(store.ok_clip_ids())
    assert controlled("shuffled", seed=1)[1].control != opened.control


def test_a_control_changes_batches_and_evaluation(controlled, captions, store):
    row = captions["split"].to_pylist().index("train")
    clip = captions["clip_id"][row].as_py()
    phrases, scores = {}, {}
    for kind in KINDS:
        config, known = controlled(kind)
        batch = make_batch(captions, np.array([row]), store.read([clip]), config, 1, known)
        phrases[kind] = batch.phrase_ids
        student = build_training(config, num_steps=1, device=CPU, phrases=known.phrase_embeddings()).student
        torch.nn.init.normal_(student.fusion.value.weight)  # untrained, phrases hardly change a frame
        evaluation = evaluate(student, captions, store, config, split="test", knowledge=known)
        scores[kind] = evaluation.ranks.t2v
        other = "constant" if kind == "none" else "none"
        with pytest.raises(AssertionError, match="under the control"):
            evaluate(student, captions, store, controlled(other)[0], split="test", knowledge=known)
    assert torch.equal(
        phrases["shuffled"], Knowledge(known.path).phrase_ids([controlled("shuffled")[1].control.phrases_of[clip]], 3)
    )
    assert not torch.equal(phrases["none"], phrases["shuffled"])
    assert not torch.equal(scores["none"], scores["shuffled"])
    assert not torch.equal(scores["none"], scores["constant"])


def test_results_say_what_controlled_them(controlled, captions, store, tmp_path):
    config, known = controlled("constant")
    training = build_training(config, num_steps=1, device=CPU, phrases=known.phrase_embeddings())
    save_checkpoint(tmp_path / "c", training, config, known)
    evaluation = evaluate(training.student, captions, store, config, split="test", knowledge=known)
    result = result_of(evaluation, tmp_path / "c", config, known, captions, chosen_on=None)
    clip = next(iter(known.control.phrases_of.values()))
    assert result["knowledge"]["control"] == result["protocol"]["control"] == "constant"
    assert result["knowledge"]["learned_from"]["constant_clip"] == clip
    assert not result["protocol"]["published"]
    text = data_text(captions, store.ledger, validation="own", knowledge=known.summary())
    assert "control: constant phrases" in text


@pytest.mark.slow
def test_runs_under_a_control_resume_and_are_compared(controlled, captions, store, tmp_path):
    folders = {}
    for kind in ("none", "shuffled"):
        config, known = controlled(kind, **{"train.epochs": 1, "tracking.images": False})
        folders[kind] = tmp_path / kind

        def launch(job, captions, num_steps):
            return train_job(job, captions, device=CPU)

        result = train(config, captions, store, known, launch=launch, folder=folders[kind])
        assert result["knowledge"]["control"] == kind
    saved = json.loads((folders["shuffled"] / result["best_checkpoint"] / "knowledge.json").read_text())
    assert saved["control"] == "shuffled"
    rows = {row.key: row for row in compare_runs(folders["none"], folders["shuffled"]).config}
    assert (rows["knowledge.control"].a, rows["knowledge.control"].b) == ("none", "shuffled")
    assert rows["knowledge.control"].counts


@pytest.mark.parametrize("kind", KINDS)
def test_search_gives_videos_the_phrases_of_the_control(kind, controlled, store, tmp_path):
    config, known = controlled(kind)
    training = build_training(config, num_steps=1, device=CPU, phrases=known.phrase_embeddings())
    save_checkpoint(tmp_path / "c", training, config, known)
    model = load(tmp_path / "c")
    clips = store.ok_clip_ids()[:8]
    frames, num_frames = store.read(clips)
    phrases = model._phrases.of(frames, num_frames)
    again = model._phrases.of(frames[::-1].copy(), num_frames[::-1].copy()).flip(0)
    assert torch.equal(phrases, again), "another order of asking"
    table = known.phrase_embeddings()
    own = load(tmp_path / "c", {"knowledge.control": "none"})._phrases.of(frames, num_frames)
    same = [torch.equal(one, other) for one, other in zip(phrases, own, strict=True)]
    if kind == "none":
        assert all(same)
    elif kind == "constant":
        clip = known.control.phrases_of[clips[0]]
        assert torch.equal(phrases, table[Knowledge(known.path).phrase_ids([clip] * 8, 3)])
    else:
        assert not any(same)
        assert len({tuple(one.flatten().tolist()) for one in phrases}) > 2


def test_constant_phrases_stay_those_of_training(controlled, captions, store, tmp_path):
    """Other training clips, as by data.train_styles, would choose the phrases of another clip."""
    config, known = controlled("constant")
    training = build_training(config, num_steps=1, device=CPU, phrases=known.phrase_embeddings())
    save_checkpoint(tmp_path / "c", training, config, known)
    check_dictionary(known, tmp_path / "c")
    (clip,) = set(known.control.phrases_of.values())
    fewer = captions.filter(pc.not_equal(captions["clip_id"], clip))
    with pytest.raises(KnowledgeError, match=rf"learned with the phrases of {clip} for all clips"):
        check_dictionary(open_knowledge(config, fewer, store, SPLITS), tmp_path / "c")


def test_search_under_constant_phrases_needs_a_model_that_learned_with_them(controlled, store, tmp_path):
    config, known = controlled("none")
    training = build_training(config, num_steps=1, device=CPU, phrases=known.phrase_embeddings())
    save_checkpoint(tmp_path / "c", training, config, known)
    with pytest.raises(KnowledgeError, match=r"was not trained with constant phrases"):
        load(tmp_path / "c", {"knowledge.control": "constant"}).embed_frames(*store.read(store.ok_clip_ids()[:1]))


def test_a_control_without_phrases_is_an_error(load_tiny):
    with pytest.raises(Exception, match=r"knowledge.control = shuffled controls what phrases say"):
        load_tiny(**{"knowledge.control": "shuffled"})


def test_a_run_without_the_setting_has_no_control_and_keeps_its_hash(load_knowing, tmp_path):
    config = load_knowing()
    stored = config.model_dump(mode="json")
    del stored["knowledge"]["control"]
    (tmp_path / "old.yaml").write_text(json.dumps(stored))
    old = load_config(tmp_path / "old.yaml", stored=True)
    assert old.knowledge.control == "none"
    assert "control" not in old.identity()["knowledge"]
    assert old.digest() == config.digest() != load_knowing(**{"knowledge.control": "constant"}).digest()
