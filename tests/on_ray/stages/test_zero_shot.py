"""The figures of a pre-trained backbone before any training, without a cluster."""

import json
import shutil
from pathlib import Path

import pyarrow.compute as pc
import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from waver.cli import app
from waver.config import load_config, load_robustness
from waver.doctor.findings import StartError
from waver.evaluation.metrics import retrieval_metrics
from waver.evaluation.ranking import rank_similarity
from waver.model.pretrained.weights import load_backbone
from waver.on_ray.stages.evaluate import run_evaluation, run_zero_shot
from waver.on_ray.stages.robustness import run_robustness
from waver.on_ray.stages.train import run_training
from waver.runs import train_loop
from waver.runs.checkpoint import checkpoint_config, load_student
from waver.runs.comparison import compare_runs
from waver.runs.folder import RunError, best_checkpoint, checkpoints, find_checkpoint, open_run, zero_shot_metrics
from waver.runs.inputs import load_captions, open_store
from waver.runs.origin import OriginError, read_origin
from waver.runs.tracking import read_metrics
from waver.runs.train import plan_run
from waver.runs.train_loop import TrainingJob, train_job
from waver.runs.untrained import make_zero_shot_run, zero_shot_experiment
from waver.training.build import build_tokenizer

METRICS = ("t2v/R@1", "t2v/R@5", "t2v/MnR", "v2t/R@1", "v2t/MnR")


@pytest.fixture(scope="session", autouse=True)
def ray_session():
    """Starts no Ray: one worker evaluates in this process."""


@pytest.fixture(scope="module")
def project(tmp_path_factory, build_project, captions, teacher_weights) -> Path:
    """A project whose model has everything that zero-shot leaves out."""
    return build_project(
        tmp_path_factory.mktemp("project"),
        captions,
        teacher_weights,
        model={"temporal": "seqTransf"},
        text={"prompt": "a video of {}"},
        resources={"workers": 1},
        knowledge={"top_k": 2},
        loss={"distill": 1.0},
    )


def experiment(project: Path, **overrides):
    return zero_shot_experiment(load_config(project / "experiment.yaml", overrides))


@pytest.fixture(scope="module")
def made(project):
    """The zero-shot run of the project, and its result on test."""
    config = experiment(project)
    return config, run_zero_shot(config, split="test")


def reference(config, split: str) -> dict[str, float]:
    """Computes the metrics with open_clip's own functions: class token of each frame, mean of the unit vectors, cosine."""
    captions = load_captions(config)
    store, rows = open_store(config, captions), captions.filter(pc.equal(captions["split"], split))
    backbone = load_backbone(config.model.backbone, config.model.weights, image_size=config.video.size).eval()
    gallery = sorted(set(rows["clip_id"].to_pylist()))
    decoded = [clip for clip in gallery if clip in set(store.ok_clip_ids())]
    frames, counts = store.read(decoded)
    videos = torch.full((len(gallery), backbone.width), torch.nan)
    with torch.no_grad():
        for clip, of_clip, count in zip(decoded, frames, counts, strict=True):
            pixels = backbone.pixels(torch.from_numpy(of_clip[:count].copy()).permute(0, 3, 1, 2))
            mean = backbone.clip.encode_image(pixels, normalize=True).mean(0)
            videos[gallery.index(clip)] = F.normalize(mean, dim=0)
        texts = [config.text.prompt.replace("{}", text) for text in rows["caption"].to_pylist()]
        tokens = F.pad(
            build_tokenizer(config)(texts, max_words=config.text.max_words)[0], (0, 77 - config.text.max_words)
        )
        text = backbone.clip.encode_text(tokens, normalize=True)
    clip_of_text = torch.tensor([gallery.index(clip) for clip in rows["clip_id"].to_pylist()])
    similarity = (text @ videos.T).nan_to_num(nan=-2.0)
    return retrieval_metrics(rank_similarity(similarity, clip_of_text, chunk_size=100))


def test_the_metrics_are_those_of_the_backbone_alone(made):
    config, result = made
    expected = reference(config, "validation")
    validation = run_zero_shot(config, split="validation")
    assert {name: validation["metrics"][name] for name in METRICS} == pytest.approx(
        {name: expected[name] for name in METRICS}, abs=1e-4
    )
    assert (result["num_queries"], result["gallery_size"], result["missing_clips"]) == (24, 9, ["v20"])


def test_the_result_says_zero_shot(made):
    config, result = made
    assert result["origin"]["kind"] == "zero-shot"
    assert result["chosen_on"] is None
    said = result["protocol"]["origin"]
    assert said.startswith(
        "zero-shot: a backbone of its own architecture (GELU) with weights clip.safetensors, mean of"
    )
    assert "prompt 'a video of {}', nothing trained, from clip.safetensors (SHA-256 " in said
    assert json.loads((config.run_folder / "evaluation_test.json").read_text()) == result
    assert result["knowledge"] == {"at_inference": False, "control": "none", "learned_from": None}


def test_the_run_is_evaluated_again_as_any_run(made):
    config, result = made
    checkpoint = find_checkpoint(config.run_folder)
    again = run_evaluation(config.run_folder, checkpoint_config(checkpoint), split="test")
    assert again == result
    assert run_zero_shot(config, split="test") == result, "and the same command uses the run that is there"


def test_other_weights_under_the_same_name_are_an_error(project, made):
    config, _ = made
    changed = load_file(project / "clip.safetensors")
    changed["logit_scale"] = changed["logit_scale"] + 1
    save_file(changed, project / "other.safetensors")
    other = experiment(project, **{"model.weights": str(project / "other.safetensors")})
    with pytest.raises(RunError, match=r"zero-shot run of another configuration \(model.weights: .*SHA-256"):
        run_zero_shot(other, split="test")
    with pytest.raises(RunError, match=r"text.prompt"):
        run_zero_shot(experiment(project, **{"text.prompt": None}), split="test")
    assert read_origin(find_checkpoint(config.run_folder)).kind == "zero-shot"


def test_other_weights_in_a_part_of_a_snapshot_are_an_error(project, tmp_path):
    state = load_file(project / "clip.safetensors")
    names = {name: "text.safetensors" if "token_embedding" in name else "rest.safetensors" for name in state}

    def write(**changed: torch.Tensor) -> None:
        for file in set(names.values()):
            part = {name: tensor for name, tensor in (state | changed).items() if names[name] == file}
            save_file(part, tmp_path / file)

    write()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    config = experiment(project, name="parts", **{"model.weights": str(tmp_path)})
    made = make_zero_shot_run(config)
    assert make_zero_shot_run(config) == made
    write(logit_scale=state["logit_scale"] + 1)
    with pytest.raises(RunError, match=r"zero-shot run of another configuration \(another file of weights: SHA-256"):
        make_zero_shot_run(config)


def test_a_model_without_weights_is_refused(project):
    with pytest.raises(
        RunError, match=r"model.weights = null: a backbone with random weights has no zero-shot figures"
    ):
        experiment(project, **{"model.weights": None, "knowledge.top_k": 0, "loss.distill": 0})


def test_a_missing_clip_store_is_told_as_before_training(project):
    nowhere = {"storage.path": str(project / "empty")}
    said = {}
    for name, start in (
        ("evaluate", lambda: run_zero_shot(experiment(project, **nowhere), split="test")),
        ("train", lambda: run_training(load_config(project / "experiment.yaml", nowhere))),
    ):
        with pytest.raises(StartError) as error:
            start()
        said[name] = [line for line in str(error.value).splitlines() if line.strip().startswith("clip store:")]
    assert said["evaluate"] == said["train"]
    assert len(said["train"]) == 1
    assert not (project / "empty").exists(), "nothing is written before the checks"


def test_weights_that_do_not_fit_are_told_before_the_start(project):
    save_file({"visual.conv1.weight": torch.zeros(2, 3, 4, 4)}, project / "small.safetensors")
    other = experiment(project, name="unfit", **{"model.weights": str(project / "small.safetensors")})
    with pytest.raises(StartError, match=r"weights: .*small.safetensors"):
        run_zero_shot(other, split="test")
    assert not other.run_folder.exists()


def test_training_does_not_continue_it(project, made):
    config, _ = made
    with pytest.raises(StartError, match=r"holds a model that waver did not train \(zero-shot\)"):
        run_training(config)


def test_tensorboard_shows_it_with_its_origin(made):
    config, _ = made
    validation = run_zero_shot(config, split="validation")
    events = EventAccumulator(str(config.run_folder / "events"))
    events.Reload()
    shown = events.Scalars("1 retrieval/t2v R@1")
    assert {event.step for event in shown} == {0}
    assert shown[-1].value == pytest.approx(validation["metrics"]["t2v/R@1"])
    text = events.Tensors("origin/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "zero-shot" in text
    assert "_hparams_/session_start_info" in events.Tags()["tensors"]


@pytest.mark.slow
def test_it_stands_beside_another_run_in_compare_and_in_the_report(project, made):
    config, result = made
    other = experiment(project, name="plain", **{"text.prompt": None})
    run_zero_shot(other, split="test")
    comparison = compare_runs(config.run_folder, other.run_folder)
    assert comparison.a == "tiny-zero-shot (zero-shot)"
    (test,) = [metrics for metrics in comparison.metrics if metrics.title == "evaluation_test"]
    assert test.not_comparable == ()
    assert {row.key: row.a for row in test.rows}["t2v/R@1"] == result["metrics"]["t2v/R@1"]
    assert not any(row.key.startswith("train.") for row in comparison.config)
    settings = load_robustness(None, {"resamples": 100, "permutations": 99, "parser": "no_such_parser"})
    report, folder = run_robustness([config.run_folder, other.run_folder], settings, {})
    assert [run["name"] for run in report["runs"]] == ["tiny-zero-shot (zero-shot)", "plain-zero-shot (zero-shot)"]
    assert "(" not in folder.name


@pytest.mark.slow
def test_the_command_takes_a_configuration_and_its_options(project, made, said, tmp_path):
    command = ["evaluate", str(project / "experiment.yaml"), "--split", "validation", "--set", "name=told"]
    done = CliRunner().invoke(app, [*command, "--export", "trec", str(tmp_path / "trec")], catch_exceptions=False)
    assert done.exit_code == 0
    assert "told-zero-shot (zero-shot)," in done.stdout
    assert "model zero-shot: a backbone of its own architecture" in done.stdout
    assert list((tmp_path / "trec").iterdir())
    run = project / "storage" / "runs" / "told-zero-shot"
    assert any(line.endswith(f"waver compare {run} RUN") for line in said)
    assert (run / "evaluation_validation.json").exists()


@pytest.fixture
def fit(project, monkeypatch):
    """Trains in this process without Ray; returns the temporal aggregator of each student that embedded a split."""

    def run(config, *, folder: Path, stop: bool = False, group: str = ""):
        captions = load_captions(config)
        store = open_store(config, captions)
        plan = plan_run(config, captions, store)
        open_run(folder, config, plan.data)
        evaluated = []
        real = train_loop.evaluate

        def counted(student, *arguments, **options):
            evaluated.append(type(student.temporal).__name__)
            if stop:
                raise KeyboardInterrupt
            return real(student, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(train_loop, "evaluate", counted)
            job = TrainingJob(config, plan.rows, store.path, None, folder, group)
            train_job(job, captions, device=torch.device("cpu"))
        return evaluated

    return run


def plain(project: Path, **overrides):
    settings = {"knowledge.top_k": 0, "loss.distill": 0, "resources.loaders_per_worker": 0, "train.epochs": 1}
    settings["tracking.images"] = False
    return load_config(project / "experiment.yaml", settings | overrides)


@pytest.mark.slow
def test_training_logs_the_same_figures_as_epoch_0_and_never_chooses_it(project, fit):
    config = plain(project, name="fitted", **{"train.lr": 1e-9})
    folder = config.run_folder
    assert fit(config, folder=folder) == ["NoneType", "TransformerAggregator"], "one embedding more, of the backbone"
    rows = read_metrics(folder)
    assert [(row["step"], row["epoch"], row.get("split")) for row in rows] == [
        (0, 0, "validation, zero-shot"), (1, 1, None), (2, 1, None), (3, 1, None), (3, 1, "validation")
    ]  # fmt: skip
    expected = run_zero_shot(zero_shot_experiment(config), split="validation")["metrics"]
    assert zero_shot_metrics(folder) == expected
    assert (rows[0]["gallery_size"], rows[0]["num_queries"]) == (5, 10)
    text = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([json.dumps(rows[0] | {"t2v/R@1": 101.0}), *text[1:]]) + "\n")
    checkpoint, metrics = best_checkpoint(folder)
    assert (checkpoint.name, metrics["t2v/R@1"]) == ("checkpoint_epoch_0001", rows[-1]["t2v/R@1"])
    events = EventAccumulator(str(folder / "events"))
    events.Reload()
    shown = events.Scalars("1 retrieval/t2v R@1")
    assert [event.step for event in shown] == [0, 3]
    assert shown[0].value == pytest.approx(expected["t2v/R@1"])
    best = EventAccumulator(str(folder / "events"))
    best.Reload()
    assert [event.step for event in best.Scalars("0 best/t2v R@1")] == [3]


@pytest.mark.slow
def test_a_run_that_resumes_does_not_repeat_epoch_0(project, fit):
    config = plain(project, name="resumed")
    folder = config.run_folder
    with pytest.raises(KeyboardInterrupt):
        fit(config, folder=folder, stop=True)  # within epoch 0: nothing was logged, so it is repeated
    assert zero_shot_metrics(folder) is None
    fit(config, folder=folder)
    (first,) = (row for row in read_metrics(folder) if row["step"] == 0)
    for checkpoint in checkpoints(folder).values():
        shutil.rmtree(checkpoint)  # it begins at step 0 once more, after epoch 0 was logged
    assert fit(config, folder=folder) == ["TransformerAggregator"]
    assert [row for row in read_metrics(folder) if row["step"] == 0] == [first]
    longer = plain(project, name="resumed", **{"train.epochs": 2})
    (folder / "config.yaml").write_text(longer.to_yaml())
    assert fit(longer, folder=folder) == ["TransformerAggregator"]
    assert [row["epoch"] for row in read_metrics(folder) if "split" in row] == [0, 1, 2]


@pytest.mark.slow
def test_neither_trials_nor_random_weights_have_an_epoch_0(project, fit):
    trial, random = plain(project, name="trial"), plain(project, name="random", **{"model.weights": None})
    assert fit(trial, folder=trial.run_folder, group="sweep/1") == ["TransformerAggregator"]
    assert fit(random, folder=random.run_folder) == ["TransformerAggregator"]


@pytest.mark.slow
def test_epoch_0_changes_no_weight_of_the_run(project, fit, monkeypatch):
    with_it, without = (plain(project, name=name) for name in ("with", "without"))
    fit(with_it, folder=with_it.run_folder)
    monkeypatch.setattr(train_loop, "_evaluate_zero_shot", lambda *arguments: None)
    assert fit(without, folder=without.run_folder) == ["TransformerAggregator"]
    states = [
        load_file(config.run_folder / "checkpoint_epoch_0001" / "model.safetensors") for config in (with_it, without)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_the_run_keeps_the_activation_that_the_weights_bring(project):
    plain = experiment(project, name="quick")
    clip = load_backbone(plain.model.backbone, plain.model.weights, image_size=16).clip
    save_file(clip.state_dict(), project / "quick.safetensors", {"quick_gelu": "true"})
    config = experiment(project, name="quick", **{"model.weights": str(project / "quick.safetensors")})
    result = run_zero_shot(config, split="validation")
    assert "(QuickGELU) with weights quick.safetensors" in result["protocol"]["origin"]
    checkpoint = find_checkpoint(config.run_folder)
    student = load_student(checkpoint, checkpoint_config(checkpoint))
    assert isinstance(student.backbone.clip.transformer.resblocks[0].mlp.gelu, QuickGELU)
    assert {name: result["metrics"][name] for name in METRICS} == pytest.approx(
        {name: value for name, value in reference(config, "validation").items() if name in METRICS}, abs=1e-4
    )


def test_a_damaged_origin_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "origin.json").write_text('{"kind": "zero-shot"}')
    with pytest.raises(OriginError, match=r"origin.json is damaged"):
        read_origin(tmp_path)
