"""A frozen teacher of another width that reads other frames, from H.264 files to search; and centred matches."""

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file
from shared_fixtures import BACKBONE, TINY

from waver.config import ExperimentConfig, load_config
from waver.data.clip_store import ClipStore
from waver.doctor.findings import StartError
from waver.knowledge.errors import KnowledgeError
from waver.knowledge.store import Knowledge
from waver.model.interaction import last_token
from waver.model.pretrained.weights import load_backbone
from waver.on_ray.stages.embed import run_embed
from waver.on_ray.stages.evaluate import run_evaluation
from waver.on_ray.stages.index import run_index
from waver.on_ray.stages.ingest import run_ingest
from waver.on_ray.stages.match import run_match
from waver.on_ray.stages.train import run_training
from waver.on_ray.stages.vocabulary import run_vocabulary
from waver.on_ray.tuning.shared import find_shared, make_shared
from waver.runs.folder import find_checkpoint
from waver.runs.inputs import load_captions, open_store
from waver.runs.soft_targets import build_spaces, embed_for_teacher, is_embedded_for_teacher
from waver.search import open_index
from waver.search.model import load
from waver.search.windows import Windows
from waver.training.build import build_teacher, build_tokenizer
from waver.training.plan import training_rows

pytestmark = pytest.mark.slow
WIDE = {
    "embed_dim": 48,
    "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 24},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
PHRASES = [f"{verb} a {colour} ball" for verb in ("kicks", "throws") for colour in ("red", "green", "blue", "old")]
SPLITS = ["train"] * 9 + ["validation"] * 3 + ["test"] * 3


def write_video(path: Path, seed: int) -> None:
    """Writes three seconds of an H.264 file with ten frames a second, each in a colour of its own."""
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(30):
            picture = np.broadcast_to(rng.integers(0, 256, 3, np.uint8), (48, 64, 3))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())


def save_weights(path: Path, backbone: dict, size: int, seed: int) -> str:
    torch.manual_seed(seed)
    save_file(load_backbone(backbone, None, image_size=size).clip.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Videos, captions, phrases, weights of student and teacher, and an experiment in which the teacher is another."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "videos").mkdir()
    rows = []
    for number, split in enumerate(SPLITS):
        write_video(folder / "videos" / f"v{number:02}.mp4", number)
        texts = [f"a man {PHRASES[number % 8]}", f"the dog {PHRASES[(number + 3) % 8]} {number} times"]
        rows += [{"video": f"v{number:02}.mp4", "caption": text, "split": split} for text in texts]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "phrases.txt").write_text("\n".join(PHRASES))
    raw = yaml.safe_load(TINY)
    raw["data"] |= {"annotations": str(folder / "captions.jsonl"), "videos": str(folder / "videos")}
    raw["video"]["frames_per_second"] = 2.0
    raw["model"]["weights"] = save_weights(folder / "student.safetensors", BACKBONE, 16, 1)
    raw["vocabulary"] = {"file": str(folder / "phrases.txt")}
    raw["embeddings"] = {"precision": "fp32"}
    raw["knowledge"] = {
        "top_k": 2,
        "num_matches": 4,
        "effective_phrases": 1.5,
        "teacher": {
            "backbone": WIDE,
            "weights": save_weights(folder / "teacher.safetensors", WIDE, 24, 2),
            "frames": 5,
        },
    }
    raw["loss"] = {"phrases_video": 0.5, "phrases_text": 0.5, "keep": 0.3}
    raw["resources"] = {"workers": 1, "loaders_per_worker": 0, "timeout_s": 60}
    raw["tracking"] = {"images": False}
    raw["storage"] = {"path": str(folder / "storage")}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(raw))
    return folder


def experiment(project: Path, **overrides) -> ExperimentConfig:
    return load_config(project / "experiment.yaml", overrides)


@pytest.fixture(scope="module")
def config(project) -> ExperimentConfig:
    """The experiment, ingested."""
    made = experiment(project)
    report = run_ingest(made, progress=False)
    assert report.counts == {"ok": 15}
    return made


@pytest.fixture(scope="module")
def known(config) -> Knowledge:
    run_vocabulary(config, progress=False)
    return run_match(config, progress=False)


@pytest.fixture(scope="module")
def run(config, known) -> Path:
    run_training(config)
    return config.run_folder


def clip_by_hand(config: ExperimentConfig, clip_id: str) -> torch.Tensor:
    """The mean normalised frame of a clip, by the teacher and from its clip store."""
    backbone = build_teacher(config.teacher).backbone
    frames, number = ClipStore(config.teacher.clip_store).read([clip_id])
    pixels = torch.from_numpy(frames[0, : number[0]]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        embedded = backbone.clip.encode_image((pixels - backbone.pixel_mean) / backbone.pixel_std)
    return F.normalize(embedded, dim=-1).mean(0)


def phrases_by_hand(config: ExperimentConfig, phrases: list[str]) -> torch.Tensor:
    backbone, tokenizer = build_teacher(config).backbone, build_tokenizer(config)
    found = []
    for phrase in phrases:
        ids, mask = tokenizer([f"This is a video about {phrase}."], max_words=77, prompt=None)
        with torch.no_grad():
            found.append(last_token(backbone.encode_tokens(ids, mask), mask)[0])
    return torch.stack(found)


def test_ingest_fills_the_clip_stores_of_student_and_teacher(project, config, said):
    shapes = [ClipStore(each.clip_store).read(["v00"])[0].shape for each in (config, config.teacher)]
    assert shapes == [(1, 3, 16, 16, 3), (1, 5, 24, 24, 3)]
    report = run_ingest(config, progress=False)
    assert report.num_skipped == 15
    assert any("15 of 15 clips are in the teacher's clip store; 0 were decoded now" in line for line in said)
    narrow = experiment(project, **{"knowledge.teacher.frames": None, "knowledge.teacher.backbone": None})
    assert narrow.has_other_teacher
    assert narrow.teacher.clip_store == config.clip_store, "other weights on the same frames need no other clip store"


def test_the_teacher_matches_and_the_phrases_stay_in_the_space_of_the_student(config, known):
    ours, theirs = known.phrase_embeddings("student"), known.phrase_embeddings("teacher")
    assert (ours.shape, theirs.shape) == ((8, 32), (8, 48))
    torch.testing.assert_close(ours, phrases_by_hand(config, known.phrases))
    torch.testing.assert_close(theirs, phrases_by_hand(config.teacher, known.phrases))
    assert len(known.matches) == 15
    for row in known.matches.to_pylist():
        scores = F.normalize(theirs, dim=-1) @ clip_by_hand(config, row["clip_id"])
        expected = scores.sort(descending=True)
        torch.testing.assert_close(torch.tensor(row["scores"]), expected.values[:4])
        assert row["phrase_ids"] == expected.indices[:4].tolist()
    alone = known.path.with_name(experiment_without(config).knowledge_store.name)
    assert alone != known.path
    assert known.manifest["student"] != known.manifest["teacher"]


def experiment_without(config: ExperimentConfig) -> ExperimentConfig:
    return config.model_copy(update={"knowledge": config.knowledge.model_copy(update={"teacher": None})})


def test_matching_resumes(config, known):
    copy = known.path.with_name("copy")
    shutil.copytree(known.path, copy)
    next((known.path / "teacher").iterdir()).unlink()
    next((known.path / "matches").iterdir()).unlink()
    with pytest.raises(KnowledgeError, match=r"teacher has embeddings of 0 of 8 phrases: run `waver match CONFIG`"):
        known.phrase_embeddings("teacher")
    again = run_match(config, progress=False)
    assert again.matches.equals(Knowledge(copy).matches)
    assert torch.equal(again.phrase_embeddings("teacher"), Knowledge(copy).phrase_embeddings("teacher"))
    shutil.rmtree(copy)


def test_spaces_are_those_of_teacher_and_student(config, known):
    captions = load_captions(config)
    store = open_store(config, captions)
    rows = training_rows(captions, store)
    paths = embed_for_teacher(config, captions, store, rows, progress=False)
    assert is_embedded_for_teacher(config, captions, store, rows)
    spaces = build_spaces(config, captions, rows, known, paths, store)
    train = sorted(set(captions["clip_id"].take(rows).to_pylist()))
    for space, each, phrases in (
        (spaces.teacher, config, known.phrase_embeddings("teacher")),
        (spaces.student, experiment_without(config), known.phrase_embeddings("student")),
    ):
        torch.testing.assert_close(space.phrases, F.normalize(phrases, dim=-1))
        clips = torch.stack([F.normalize(clip_by_hand(each, clip), dim=-1) for clip in train])
        torch.testing.assert_close(space.clip_mean, clips.mean(0))
    assert spaces.teacher.clip_temperature != spaces.student.clip_temperature
    elsewhere = experiment(Path(config.data.annotations).parent, seed=1, **{"knowledge.teacher.frames": 4})
    with pytest.raises(StartError, match=r"clip store of the teacher: .*waver ingest CONFIG"):
        run_match(elsewhere, progress=False)


def test_embed_also_fills_the_stores_of_the_teacher(config, known):
    report = run_embed(config, progress=False)
    assert report.frozen is not None
    assert report.frozen.teacher.frames == config.teacher.frame_embeddings
    assert report.frozen.teacher.tokens == config.teacher.token_embeddings
    assert report.frozen.student.frames == config.frame_embeddings


def test_a_sweep_makes_what_the_teacher_reads_before_its_trials(project, config, known):
    captions = load_captions(config)
    store = open_store(config, captions)
    embed_for_teacher(config, captions, store, training_rows(captions, store), progress=False)
    found = {(artifact.what, artifact.path): artifact.there for artifact in find_shared([config])}
    assert found == {
        ("clip store", config.clip_store): True,
        ("clip store", config.teacher.clip_store): True,
        ("embeddings by the teacher", config.teacher.frame_embeddings): True,
        ("knowledge", config.knowledge_store): True,
    }
    other = experiment(project, **{"knowledge.teacher.frames": 4})
    missing = {artifact.path for artifact in find_shared([config, other]) if not artifact.there}
    of_other = {other.teacher.clip_store, other.teacher.frame_embeddings, other.knowledge_store}
    assert missing == of_other
    make_shared([other])
    assert all(artifact.there for artifact in find_shared([config, other]))
    assert len(Knowledge(other.knowledge_store).matches) == 15


def test_a_run_learns_from_the_teacher_and_is_evaluated(run, config):
    result = run_evaluation(run, config, split="test")
    assert result["gallery_size"] == 3
    assert result["knowledge"]["at_inference"]
    logged = json.loads((run / "result.json").read_text())
    assert logged["epochs"] == 2


def test_search_matches_videos_by_the_frames_of_the_teacher(run, config, known, tmp_path):
    model = load(run)
    assert model.teacher_settings.max_frames == 5
    clips = ["v12", "v13"]
    videos = [Path(config.data.videos) / f"{clip}.mp4" for clip in clips]
    found = model.embed_videos(videos)
    frames, numbers = ClipStore(config.clip_store).read(clips)
    pixels = torch.from_numpy(frames).permute(0, 1, 4, 2, 3)
    mask = torch.arange(3) < torch.as_tensor(numbers)[:, None]
    phrases = known.phrase_embeddings()[known.phrase_ids(clips, 2)]
    with torch.no_grad():
        expected = model.student.encode_video(pixels, mask, phrases)
    torch.testing.assert_close(found.values, expected.values)
    other = known.phrase_embeddings()[known.phrase_ids(clips[::-1], 2)]
    assert known.phrase_ids(clips, 2).tolist() != known.phrase_ids(clips[::-1], 2).tolist()
    assert not torch.equal(model.student.encode_video(pixels, mask, other).values, expected.values)

    (tmp_path / "films").mkdir()
    for video in videos:
        shutil.copy(video, tmp_path / "films")
    report = run_index(
        find_checkpoint(run), model.config, [tmp_path / "films"], tmp_path / "index", Windows(None, 1.0), progress=False
    )
    assert report.num_windows == 2
    index = open_index(tmp_path / "index")
    text = model.embed_texts(["a man kicks a red ball"])
    torch.testing.assert_close(torch.as_tensor(index.scores(text)), model.similarity(text, found))


def test_an_equal_teacher_gives_the_same_results_to_the_bit(project, config, known):
    """The teacher is a copy of the student's weights: other stores, the same numbers."""
    copy = str(shutil.copy(project / "student.safetensors", project / "copy.safetensors"))
    same = {"knowledge.teacher.backbone": None, "knowledge.teacher.frames": None}
    alone = experiment(project, name="alone", **{"knowledge.teacher": None})
    equal = experiment(project, name="equal", **same, **{"knowledge.teacher.weights": copy})
    named = {"knowledge.teacher.weights": alone.model.weights, "knowledge.teacher.backbone": BACKBONE}
    assert not experiment(project, **{**same, **named}).has_other_teacher
    assert equal.has_other_teacher
    weights = []
    for each in (alone, equal):
        run_match(each, progress=False)
        run_training(each)
        weights.append(load_file(find_checkpoint(each.run_folder) / "model.safetensors"))
    first, second = (Knowledge(each.knowledge_store) for each in (alone, equal))
    assert first.path != second.path
    assert first.matches.equals(second.matches)
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_a_teacher_that_cannot_work_is_told_before_anything_runs(project, config):
    absent = experiment(project, **{"knowledge.teacher.weights": str(project / "absent.pt")})
    with pytest.raises(StartError, match=r"teacher: .*absent\.pt"):
        run_match(absent, progress=False)
    wrong = experiment(project, **{"knowledge.teacher.weights": str(project / "student.safetensors")})
    with pytest.raises(StartError, match=r"teacher: .*student\.safetensors"):
        run_match(wrong, progress=False)
    short = {**WIDE, "text_cfg": {**WIDE["text_cfg"], "context_length": 8}}
    with pytest.raises(StartError, match=r"knowledge\.teacher\.backbone has 8 positions"):
        run_training(experiment(project, **{"knowledge.teacher.backbone": short}))


@pytest.fixture(scope="module")
def centred(project, config, known) -> Knowledge:
    return run_match(experiment(project, **{"knowledge.matching": "centred"}), progress=False)


def test_centred_scores_are_less_the_mean_over_the_training_clips(config, known, centred):
    assert centred.path != known.path
    phrases = F.normalize(centred.phrase_embeddings("teacher"), dim=-1)
    clips = {f"v{number:02}": clip_by_hand(config, f"v{number:02}") for number in range(15)}
    means = torch.stack([phrases @ clips[f"v{number:02}"] for number in range(9)]).mean(0)
    for row in centred.matches.to_pylist():
        expected = (phrases @ clips[row["clip_id"]] - means).sort(descending=True)
        torch.testing.assert_close(torch.tensor(row["scores"]), expected.values[:4], rtol=0, atol=1e-6)
        assert row["phrase_ids"] == expected.indices[:4].tolist()
    assert centred.phrase_ids(sorted(clips), 1).unique().numel() > known.phrase_ids(sorted(clips), 1).unique().numel()


def test_centred_matching_resumes_with_two_workers_to_equal_bits(project, centred, monkeypatch):
    copy = centred.path.with_name("copy")
    shutil.copytree(centred.path, copy)
    for part in ("matches", "teacher"):
        for file in (centred.path / part).iterdir():
            file.unlink()
    monkeypatch.setattr("waver.on_ray.stages.match._FEW_SCORES", 0)  # actors
    two = experiment(project, **{"knowledge.matching": "centred", "resources.workers": 2})
    again = run_match(two, progress=False)
    (again.path / "clip_mean.safetensors").unlink()
    for file in (again.path / "matches").iterdir():
        file.unlink()
    again = run_match(two, progress=False)
    assert again.matches.equals(Knowledge(copy).matches)
    assert torch.equal(again.clip_mean(), Knowledge(copy).clip_mean())
    (again.path / "clip_mean.safetensors").unlink()
    with pytest.raises(KnowledgeError, match=r"clip_mean\.safetensors is missing: delete"):
        again.clip_mean()
    shutil.rmtree(again.path)
    copy.rename(again.path)


def test_search_centres_as_matching_did(project, centred):
    config = experiment(project, name="centred", **{"knowledge.matching": "centred"})
    run_training(config)
    model = load(config.run_folder)
    clips = ["v12", "v13", "v14"]
    frames = ClipStore(config.teacher.clip_store).read(clips)
    expected = centred.phrase_embeddings()[centred.phrase_ids(clips, 2)]
    assert torch.equal(model._phrases.of(*frames), expected)
