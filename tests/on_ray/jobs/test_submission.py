import shlex
import subprocess
from pathlib import Path

import pytest

from waver.config import ConfigError, load_config
from waver.on_ray.jobs import StageCommand, SubmissionError, default_working_dir, plan_submission

DATA = "data: {format: table, annotations: /shared/captions.jsonl, videos: /shared/videos}\n"
STORED = "storage: {path: /shared/waver}\n"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with an experiment, a sweep, and an experiment whose paths exist only on this machine."""
    folder = tmp_path / "clone"
    (folder / "experiments").mkdir(parents=True)
    (folder / "experiments" / "good.yaml").write_text("name: good\n" + DATA + STORED)
    (folder / "experiments" / "sweep.yaml").write_text(
        "name: search\nbase: good.yaml\nspace: {train.lr: {choice: [1e-4, 1e-3]}}\nscheduler: {kind: none}\n"
    )
    (folder / "experiments" / "local.yaml").write_text(
        "name: local\ndata: {format: table, annotations: captions.jsonl, videos: ~/videos}\nmodel: {weights: w/clip.pt}\n"
    )
    return folder


def plan(clone, stage, *arguments, parsed=None, **options):
    command = StageCommand(stage, arguments, parsed or {}, options.pop("overrides", {}), options.pop("folder", clone))
    return plan_submission(command, **{"working_dir": clone, "address": "http://head:8265", "environ": {}} | options)


def test_a_job_runs_the_same_command_in_the_uploaded_folder(clone):
    job = plan(
        clone, "train", "experiments/good.yaml", "--set", "text.prompt=it's {}", overrides={"text.prompt": "it's {}"}
    )
    assert shlex.split(job.entrypoint) == [
        *("python", "-m", "waver", "train", "experiments/good.yaml", "--set", "text.prompt=it's {}")
    ]
    config = load_config(clone / "experiments/good.yaml", {"text.prompt": "it's {}"})
    assert job.metadata == {
        "waver.stage": "train",
        "waver.experiment": "good",
        "waver.config": config.digest(),
        "waver.folder": "/shared/waver/runs/good",
    }
    assert job.needs == ("experiments/good.yaml",)
    assert job.runs == "/shared/waver/runs"
    assert job.environment == {"RAY_JOB_STOP_WAIT_TIME_S": "60"}


def test_relative_paths_are_relative_to_the_same_folder_in_the_job(clone, tmp_path):
    inside = plan(clone, "ingest", "good.yaml", folder=clone / "experiments")
    assert inside.entrypoint == "cd experiments && python -m waver ingest good.yaml"
    outside = plan(clone, "ingest", "clone/experiments/good.yaml", folder=tmp_path)
    assert outside.entrypoint == "python -m waver ingest experiments/good.yaml"
    absolute = plan(clone, "ingest", str(clone / "experiments" / "good.yaml"))
    assert absolute.entrypoint == "python -m waver ingest experiments/good.yaml"


def test_metadata_names_the_folder_that_a_stage_writes(clone):
    config = load_config(clone / "experiments/good.yaml")
    folders = {
        stage: plan(clone, stage, "experiments/good.yaml").metadata.get("waver.folder")
        for stage in ("ingest", "embed", "vocabulary", "match", "doctor")
    }
    assert folders == {
        "ingest": str(config.clip_store),
        "embed": str(config.frame_embeddings),
        "vocabulary": str(config.dictionary),
        "match": str(config.knowledge_store),
        "doctor": None,
    }
    sweep = plan(clone, "tune", "experiments/sweep.yaml")
    assert sweep.metadata["waver.folder"] == sweep.runs == "/shared/waver/sweeps/search"
    assert sweep.needs == ("experiments/sweep.yaml", "experiments/good.yaml")


def test_a_backbone_is_evaluated_zero_shot_in_the_uploaded_folder(clone):
    config = "experiments/good.yaml"
    job = plan(clone, "evaluate", config, parsed={"run_or_config": config, "output": None, "export": None})
    assert job.entrypoint == f"python -m waver evaluate {config}"
    assert job.needs == (config,)
    assert (job.metadata["waver.experiment"], job.metadata["waver.folder"]) == (
        "good",
        "/shared/waver/runs/good-zero-shot",
    )


def test_runs_are_not_uploaded_and_their_relative_paths_are_errors(clone):
    job = plan(
        clone,
        *("evaluate", "/shared/waver/runs/good", "--split", "validation"),
        parsed={"run_or_config": "/shared/waver/runs/good", "split": "validation", "output": None, "export": None},
    )
    assert job.entrypoint == "python -m waver evaluate /shared/waver/runs/good --split validation"
    assert job.metadata == {"waver.stage": "evaluate"}
    with pytest.raises(SubmissionError) as refused:
        plan(
            clone,
            *("robustness", "runs/a", "/shared/b"),
            parsed={"runs": ["runs/a", "/shared/b"], "config": "/elsewhere/report.yaml", "output": "report"},
            overrides={"storage.path": "here"},
        )
    lines = str(refused.value).splitlines()[1:]
    assert [line.partition(":")[0].strip() for line in lines] == [
        f"/elsewhere/report.yaml is not in {clone}, the uploaded folder",
        *("storage.path", "run", "--output"),
    ]


def test_all_problems_are_reported_at_once(clone):
    with pytest.raises(SubmissionError) as refused:
        plan(clone, "train", "experiments/local.yaml", variables=["AWS_SECRET_ACCESS_KEY=opensesame", "X"])
    text = str(refused.value)
    for expected in (
        "storage.path: storage (the default) is relative",
        "data.annotations: captions.jsonl (in local.yaml) is relative",
        "data.videos: ~/videos (in local.yaml) is the home of",
        "model.weights: w/clip.pt (in local.yaml) is relative",
        "--env AWS_SECRET_ACCESS_KEY: looks like a credential and is not sent",
        "--env X: write it as NAME=VALUE",
    ):
        assert expected in text
    assert "opensesame" not in text


@pytest.mark.parametrize("stage", ["ingest", "match", "train"])
def test_a_pretrained_tag_is_not_a_path(clone, stage, monkeypatch):
    """Nor is a repository of the hub, which this machine need not reach."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for weights in ("laion2b_s34b_b79k", "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"):
        plan(clone, stage, "experiments/good.yaml", overrides={"model.weights": weights})


def test_paths_in_a_search_space_are_checked(clone):
    sweep = clone / "experiments" / "places.yaml"
    sweep.write_text("name: s\nbase: good.yaml\nspace: {model.weights: {choice: [openai, w/a.pt]}}\n")
    with pytest.raises(SubmissionError, match=r"space.model.weights: w/a.pt \(in the sweep\) is relative"):
        plan(clone, "tune", "experiments/places.yaml")


def test_every_point_of_a_sweep_is_validated(clone):
    sweep = clone / "experiments" / "wrong.yaml"
    sweep.write_text("name: s\nbase: good.yaml\nspace: {train.lrr: {choice: [1, 2]}}\n")
    with pytest.raises(ConfigError, match=r"train\.lrr"):
        plan(clone, "tune", "experiments/wrong.yaml")


def test_a_job_inherits_no_credentials(clone):
    environ = {
        "OMP_NUM_THREADS": "4",
        "AWS_ENDPOINT_URL": "http://minio:9000",
        "AWS_ACCESS_KEY_ID": "opensesame",
        "RAY_AUTH_TOKEN": "opensesame",
    }
    job = plan(clone, "train", "experiments/good.yaml", environ=environ, variables=["NCCL_SOCKET_IFNAME=eth0"])
    assert job.environment == {
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "OMP_NUM_THREADS": "4",
        "AWS_ENDPOINT_URL": "http://minio:9000",
        "NCCL_SOCKET_IFNAME": "eth0",
    }
    with pytest.raises(SubmissionError, match="AWS_ENDPOINT_URL: contains a password in its URL") as refused:
        plan(clone, "train", "experiments/good.yaml", environ={"AWS_ENDPOINT_URL": "http://me:opensesame@minio:9000"})
    assert "opensesame" not in str(refused.value)


def test_storage_and_videos_in_the_working_directory_are_not_uploaded(clone):
    job = plan(
        clone,
        *("train", "experiments/good.yaml"),
        address="http://127.0.0.1:8265",
        overrides={"storage.path": str(clone / "my" / "storage"), "data.videos": str(clone / "clips")},
    )
    assert {"/my/storage", "/clips", ".git", "/quickstart"} <= set(job.excludes)


def test_metadata_has_the_git_commit_and_whether_files_changed(clone):
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.com")
        return subprocess.run(
            ["git", *who, *arguments], cwd=clone, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "x")
    commit = git("rev-parse", "HEAD")
    assert default_working_dir(clone / "experiments").samefile(clone)
    assert plan(clone, "train", "experiments/good.yaml").metadata["waver.git_commit"] == commit

    (clone / "waver").mkdir()
    (clone / "waver" / "__main__.py").touch()
    job = plan(clone, "train", "experiments/good.yaml")
    assert job.metadata["waver.git_commit"] == f"{commit}, with changes"
    assert job.environment["WAVER_GIT_COMMIT"] == commit
    assert job.environment["WAVER_GIT_CHANGES"] == "?? waver/"
