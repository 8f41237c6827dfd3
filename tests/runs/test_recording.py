"""What a run tells of itself, without Ray: a few steps of a tiny model."""

import gzip
import json
import warnings
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from waver.runs import recording as module
from waver.runs.tracking import read_metrics
from waver.training.profiling import PARTS

STEPS = 3
"""Of an epoch of `record_run`."""


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "events"), size_guidance={"images": 0, "histograms": 0, "tensors": 0})
    events.Reload()
    return events


def age(folder: Path) -> None:
    """Events written in the same second sort by chance; those of a run that was killed are older."""
    for path in (folder / "events").rglob("*tfevents*"):
        path.rename(path.with_name(path.name.replace("tfevents.", "tfevents.0")))


@pytest.fixture(scope="module")
def told(tmp_path_factory, record_run, knowledge, tiny_config, teacher_weights):
    """A run with knowledge, its folder and its events."""
    folder = tmp_path_factory.mktemp("run")
    settings = tiny_config.model_dump(mode="json")
    settings["model"]["weights"] = str(teacher_weights)
    settings["knowledge"] |= {"top_k": 3, "at_inference": True}
    settings["profile"] = {"steps": [2, 4]}  # an evaluation between them
    config = type(tiny_config).model_validate(settings)
    record_run(folder, config, knowledge)
    return folder, read(folder)


@pytest.mark.slow
def test_every_evaluation_has_images(told):
    _, events = told
    tags = events.Tags()["images"]
    for start in ("t2v/query_1", "v2t/query_1", "similarity/matrix", "interaction/pair_1", "knowledge/attention_1"):
        assert start in tags
        images = events.Images(start)
        assert [image.step for image in images] == [STEPS, 2 * STEPS]
        for image in images:
            assert image.encoded_image_string.startswith(b"\x89PNG")
            assert min(image.width, image.height) > 20


def test_every_evaluation_has_histograms_and_curves(told):
    _, events = told
    assert set(events.Tags()["histograms"]) == {
        "t2v/log2_rank",
        "v2t/log2_rank",
        "similarity/positive",
        "similarity/negative",
    }
    for tag in events.Tags()["histograms"]:
        assert [event.step for event in events.Histograms(tag)] == [STEPS, 2 * STEPS]
    assert [event.step for event in events.Tensors("similarity/pairs")] == [STEPS, 2 * STEPS]


@pytest.mark.slow
def test_texts_describe_the_run(told):
    _, events = told
    texts = {
        tag.removesuffix("/text_summary"): events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
        if tag.endswith("/text_summary")
    }
    assert set(texts) == {"configuration", "command", "environment", "data", "model", "best so far"}
    assert "top&#95;k" in texts["configuration"]
    assert "python" in texts["environment"]
    assert "not decoded" in texts["data"]
    assert "knowledge fusion" in texts["model"]
    assert "R@1: chance 20.0, 5 clips" in texts["best so far"]


def test_hparams_have_the_best_metrics(told):
    folder, events = told
    assert {"_hparams_/session_start_info", "_hparams_/session_end_info"} <= set(events.Tags()["tensors"])
    rows = [row for row in read_metrics(folder) if row.get("split") == "validation"]
    best = [max(row["t2v/R@1"] for row in rows[: n + 1]) for n in range(len(rows))]
    assert [event.value for event in events.Scalars("0 best/t2v R@1")] == pytest.approx(best)


def test_projector_has_points_and_thumbnails(told):
    folder, _ = told
    projector = folder / "events" / "projector"
    config = (projector / "projector_config.pbtxt").read_text()
    for name in ("clips", "clips_and_captions"):
        assert f'"{name}.tsv"' in config
        points = (projector / f"{name}.tsv").read_text().splitlines()
        assert len((projector / f"{name}_metadata.tsv").read_text().splitlines()) == len(points) + 1
        assert (projector / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_trace_has_the_parts_of_each_step(told):
    folder, _ = told
    (trace,) = (folder / "profile").iterdir()
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    spans = sorted((e for e in events if e.get("cat") == "user_annotation"), key=lambda event: float(event["ts"]))
    names = [event["name"] for event in spans]
    steps = {name: event for name, event in zip(names, spans, strict=True) if name.startswith("step ")}
    assert list(steps) == [name for name in names if name.startswith("step ")] == ["step 2", "step 3", "step 4"]
    begin, end = (float(steps["step 3"]["ts"]) + more for more in (0.0, float(steps["step 3"]["dur"])))
    last = max(float(e["ts"]) for e in events if e.get("cat") == "cpu_op" and begin <= float(e["ts"]) <= end)
    optimizer = next(e for e in spans if e["name"] == "optimizer" and begin <= float(e["ts"]) <= end)
    assert last <= float(optimizer["ts"]) + float(optimizer["dur"]), "the evaluation after it belongs to no step"
    for part in set(PARTS) - {"all-reduce"}:  # one worker exchanges nothing
        assert names.count(part) == 3, part


def test_failed_clips_are_counted(told, store, captions):
    folder, _ = told
    failed = len(store.ledger) - len(store.ok_clip_ids())
    assert failed > 0
    rows = [row for row in read_metrics(folder) if "split" in row]
    assert {row["clips/failed"] for row in rows} == {failed}


@pytest.mark.slow
def test_resumed_run_has_each_step_once(tmp_path, record_run, tiny_config):
    """Killed after its second epoch, of which no checkpoint was kept, it goes on after the first."""
    record_run(tmp_path, tiny_config, epochs=2)
    age(tmp_path)
    record_run(tmp_path, tiny_config, epochs=2, before=1)
    events = read(tmp_path)
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert steps["3 loss/total"] == [*range(1, 3 * STEPS + 1)]
    assert steps["1 retrieval/t2v R@1"] == steps["0 best/t2v R@1"] == [STEPS, 2 * STEPS, 3 * STEPS]
    for tag in events.Tags()["images"]:
        shown = [image.step for image in events.Images(tag)]
        assert shown == sorted(set(shown)), tag
    assert [image.step for image in events.Images("similarity/matrix")] == [STEPS, 2 * STEPS, 3 * STEPS]


def test_drawing_error_is_a_warning(tmp_path, record_run, tiny_config, monkeypatch):
    def broken(*arguments, **more):
        raise RuntimeError("no font")

    monkeypatch.setattr(module, "inspect_run", broken)
    with pytest.warns(UserWarning, match="nothing is drawn of step 3: RuntimeError: no font"):
        training = record_run(tmp_path, tiny_config, epochs=1)
    assert training.step == STEPS
    assert [row["step"] for row in read_metrics(tmp_path) if "split" in row] == [STEPS]


@pytest.mark.slow
def test_a_teacher_that_knows_no_more_than_its_student_is_named_once_an_epoch(
    tmp_path, record_run, load_knowing, knowledge
):
    config = load_knowing(**{"loss.distill": 1, "knowledge.at_inference": False, "tracking.images": False})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        record_run(tmp_path, config, knowledge, epochs=4)
    said = [str(warning.message) for warning in caught if "is no better than its student" in str(warning.message)]
    expected = []
    for epoch in range(1, 5):
        rows = [row for row in read_metrics(tmp_path) if row["epoch"] == epoch and "split" not in row]
        plain, informed = (sum(row[f"accuracy/{way}"] for row in rows) / len(rows) for way in ("plain", "informed"))
        if informed <= plain:
            expected.append(f"epoch {epoch}: ")
    assert [text[:9] for text in said] == expected
    assert len(expected) > 0


def test_a_weak_teacher_in_words():
    text = module.describe_weak_teacher([(0.5, 0.25), (0.25, 0.25)])
    assert (
        "25.0% of the captions find their clip among videos with fused phrases, and 37.5% among videos without" in text
    )
    assert module.describe_weak_teacher([(0.5, 0.75), (0.25, 0.25)]) == module.describe_weak_teacher([]) == ""
