"""Checkpoints in the formats of the field, made from the figures of the reference, become runs with its numbers."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from field_cases import CASES, FIGURES, assert_close, read_case
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from waver.cli import app
from waver.config import ConfigError, load_config
from waver.model.embeddings import Embeddings
from waver.model.interaction import wti
from waver.model.pretrained.field_checkpoints import PREFIXES, FieldCheckpointError
from waver.model.student import Student
from waver.runs.checkpoint import checkpoint_config, load_student
from waver.runs.comparison import compare_runs
from waver.runs.folder import RunError, check_run, find_checkpoint, newest_checkpoint
from waver.runs.importing import import_checkpoint
from waver.runs.origin import read_origin
from waver.runs.padding import wti_with_zeros
from waver.runs.untrained import sha256_of
from waver.tools.errors import WaverError
from waver.tools.object_store import local_copy
from waver.training.build import build_student

BACKBONE = {
    "embed_dim": 128,
    "quick_gelu": True,
    "vision_cfg": {"layers": 2, "width": 128, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 4},
}
FUSION = "co_connection_transformer_model_block."


def config_of_parity(folder: Path, kind: str) -> Path:
    settings = {
        "name": "parity",
        "data": {"format": "table", "annotations": str(folder / "none.jsonl"), "videos": str(folder / "none")},
        "video": {"size": 64, "max_frames": 6},
        "text": {"max_words": 16},
        "model": {"backbone": BACKBONE, "weights": str(folder / "teacher.pt")},
        "similarity": {"kind": kind},
        "storage": {"path": str(folder / "storage")},
    }
    path = folder / "parity.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def save_case(case: str, path: Path, *, fusion: bool = True, prefix: str = "") -> Path:
    """Writes a checkpoint as the training code does; the vocabulary is CLIP's, of which the figures use the first tokens."""
    state = {name: value for name, value in read_case(case).items() if fusion or not name.startswith(FUSION)}
    table = state["clip.token_embedding.weight"]
    state["clip.token_embedding.weight"] = torch.cat([table, table.new_zeros(49408 - len(table), table.shape[1])])
    torch.save({f"{prefix}{name}": value for name, value in state.items()}, path)
    return path


def imported(run: Path) -> Student:
    checkpoint = find_checkpoint(run)
    return load_student(checkpoint, checkpoint_config(checkpoint)).eval()


@torch.no_grad()
def embed(student: Student, inputs, knowledge=None) -> tuple[Embeddings, Embeddings]:
    mask = inputs["video_mask"].bool()
    frames = student.backbone.encode_frames(inputs["video"].float(), mask)
    if knowledge is not None:
        frames = student.fusion(frames, knowledge)
    text = student.encode_text(inputs["text_ids"], inputs["text_mask"].bool())
    return text, student.aggregate(frames, mask)


def figures(case: str):
    padded = case.endswith(("_padded", "_none"))
    return load_file(FIGURES / f"inputs_{'padded' if padded else 'full'}.safetensors"), load_file(
        FIGURES / f"{case}.safetensors"
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_of_waver_gives_the_figures_of_the_reference(case, tmp_path):
    path = save_case(case, tmp_path / "pytorch_model.bin.4", prefix="module.")
    kind = case.split("_")[0].rstrip("123")
    checkpoint, origin = import_checkpoint(path, "released", config_of_parity(tmp_path, kind))
    assert checkpoint == tmp_path / "storage" / "runs" / "released" / "checkpoint_epoch_0000"
    assert origin.model.startswith("WAVER: ")
    assert (origin.file, origin.sha256) == ("pytorch_model.bin.4", sha256_of(path))
    config = checkpoint_config(checkpoint)
    assert (config.uses_fusion, config.informed_at_inference, config.knowledge.top_k) == (True, True, 1)
    student = imported(checkpoint.parent)
    inputs, expected = figures(case)
    text, video = embed(student, inputs, expected["knowledge"])
    assert_close(student.similarity(text, video), expected["similarity_t2v"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("dp_none", "CLIP4Clip or DRL: a backbone of its own architecture, mean of the frames, dp"),
        ("ti_seqtransf", "CLIP4Clip or DRL: a backbone of its own architecture, seqTransf over the frames, ti"),
        (
            "wti2_seqtransf_padded",
            "DRL: a backbone of its own architecture, seqTransf over the frames, wti with weights of 2",
        ),
        (
            "wti3_seqlstm",
            "DRL: a backbone of its own architecture, seqLSTM over the frames, wti with weights of 3 layers",
        ),
        (
            "xti_seqtransf",
            "CLIP4Clip (tight) or DRL: a backbone of its own architecture, seqTransf over the frames, xti",
        ),
    ],
)
def test_a_checkpoint_without_fusion_gives_the_figures_without_it(case, code, tmp_path):
    path = save_case(case, tmp_path / "pytorch_model.bin.4", fusion=False)
    checkpoint, origin = import_checkpoint(path, "drl", config_of_parity(tmp_path, case.split("_")[0].rstrip("123")))
    assert origin.model.startswith(code)
    student = imported(checkpoint.parent)
    assert student.fusion is None
    inputs, expected = figures(case)
    text, video = embed(student, inputs)
    mask = inputs["video_mask"].bool()
    assert_close(video.values[mask], expected["video_aggregated_no_fusion"][mask])
    if "similarity_no_fusion" in expected:
        assert_close(student.similarity(text, video), expected["similarity_no_fusion"])


@pytest.mark.slow
def test_padding_that_is_multiplied_by_0_is_the_reference_and_differs_where_all_cosines_are_negative(tmp_path):
    case = "wti2_seqtransf_padded"
    path = save_case(case, tmp_path / "w.bin")
    student = imported(import_checkpoint(path, "w", config_of_parity(tmp_path, "wti"))[0].parent)
    inputs, expected = figures(case)
    text, video = embed(student, inputs, expected["knowledge"])
    assert_close(wti_with_zeros(text, video), expected["similarity_t2v"])
    assert_close(wti(text, video), expected["similarity_t2v"])
    opposite = replace(video, values=-video.values)
    theirs, ours = wti_with_zeros(text, opposite), wti(text, opposite)
    assert (theirs - ours).max() > 0.05
    assert (theirs - ours).min() > -1e-6, "padding can only raise a maximum"


WIDE = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory, build_project, captions) -> Path:
    """A project whose clip store is there."""
    settings = {"backbone": WIDE, "temporal": "seqLSTM"}
    return build_project(tmp_path_factory.mktemp("project"), captions, model=settings, resources={"workers": 1})


@pytest.fixture(scope="module")
def drl(project) -> tuple[Path, Student]:
    """A checkpoint of DRL for the frames of the project, and our model with the same weights."""
    config = load_config(project / "experiment.yaml", {"seed": 5})
    student = build_student(config)
    state = {}
    for name, value in student.state_dict().items():
        theirs, ours = next((t, o) for t, o in PREFIXES.items() if name.startswith(o))
        state[theirs + name.removeprefix(ours)] = value
    path = project / "pytorch_model.bin.2"
    torch.save(state, path)
    return path, student


@pytest.fixture(scope="module")
def run(project, drl) -> Path:
    checkpoint, _ = import_checkpoint(drl[0], "drl", project / "experiment.yaml")
    return checkpoint.parent


def test_the_imported_model_has_the_weights_of_the_file(run, drl):
    ours = imported(run).state_dict()
    assert all(torch.equal(ours[name], value) for name, value in drl[1].state_dict().items())
    assert newest_checkpoint(run) == find_checkpoint(run)


def test_the_difference_by_padding_is_measured_where_the_clips_are(run):
    (told,) = (note for note in read_origin(find_checkpoint(run)).notes if note.startswith("padding"))
    found = re.search(r"On 8 clips of test similarities differ by at most (\S+) \((\d+) of 64 pairs by more", told)
    assert found, told
    assert (float(found[1]) > 1e-6) == (int(found[2]) > 0)


@pytest.mark.slow
def test_it_is_evaluated_and_labelled_imported_everywhere(run, project, drl):
    done = CliRunner().invoke(app, ["evaluate", str(run)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "model imported: DRL: a backbone of its own architecture, seqLSTM over the frames, wti" in done.stdout
    assert "drl (imported), " in done.stdout
    result = json.loads((run / "evaluation_test.json").read_text())
    assert (result["origin"]["file"], result["chosen_on"]) == ("pytorch_model.bin.2", None)
    assert result["origin"]["sha256"] == sha256_of(drl[0])
    other, _ = import_checkpoint(drl[0], "again", project / "experiment.yaml")
    comparison = compare_runs(run, other.parent)
    assert (comparison.a, comparison.b) == ("drl (imported)", "again (imported)")
    assert {row.key: row.a for row in comparison.training}["file"] == "pytorch_model.bin.2"
    assert list((run / "events").glob("*tfevents*"))


def test_a_name_that_is_taken_is_an_error(run, project, drl):
    with pytest.raises(RunError, match=r"runs/drl holds a run already \(imported\)"):
        import_checkpoint(drl[0], "drl", project / "experiment.yaml")


def test_without_configuration_the_data_are_named_later(project, drl, tmp_path, monkeypatch, said):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["import", str(drl[0]), "--as", "bare"], catch_exceptions=False)
    assert done.exit_code == 0
    checkpoint = find_checkpoint(tmp_path / "storage" / "runs" / "bare")
    config = checkpoint_config(checkpoint)
    assert (config.video.size, config.text.prompt, config.model.temporal) == (16, None, "seqLSTM")
    notes = read_origin(checkpoint).notes
    assert any("captions are read without a prompt, up to 32 tokens" in note for note in notes)
    assert any("the data have no clip store yet" in note for note in notes)
    assert any("--set data.annotations=captions.jsonl" in line for line in said)
    places = {name: str(project / file) for name, file in (("annotations", "captions.jsonl"), ("videos", "videos"))}
    named = checkpoint_config(checkpoint, {f"data.{name}": place for name, place in places.items()})
    assert str(named.data.annotations) == places["annotations"]


def test_settings_that_the_checkpoint_decides_are_refused(project, drl):
    for settings, message in (
        (
            {"model.temporal": "none", "seed": 3},
            r"--set model.temporal, seed: these settings follow from the checkpoint",
        ),
        ({"similarity.kind": "ti"}, r"similarity.kind=ti: the checkpoint has weights of wti"),
        ({"video.size": 32}, r"video.size = 32, but the checkpoint reads frames of 16 pixels"),
    ):
        with pytest.raises(ConfigError, match=message):
            import_checkpoint(drl[0], "refused", project / "experiment.yaml", settings)
    assert not (project / "storage" / "runs" / "refused").exists()


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.mkdir, (self.path,))


def test_files_that_hold_something_else_are_named(drl, tmp_path, project):
    state = torch.load(drl[0], weights_only=True)
    contents = {
        "pickle.bin": (
            {"clip.proj": Bomb(tmp_path / "exploded")},
            r"pickle.bin cannot be read as weights without running code: it holds an object of",
        ),
        "pytorch_opt.bin.2": ({"epoch": 2, "optimizer_state_dict": {}, "loss": 1.0}, "holds the state of an optimizer"),
        "two.bin": ({"model": state, "state_dict": state}, r"holds several state dicts \('state_dict', 'model'\)"),
        "list.bin": ([1, 2], "holds list, something else than tensors by name"),
        "bytes.bin": ({name: value.to(torch.int8) for name, value in state.items()}, r"as int8, which waver does not"),
        "flat.bin": (state | {"clip.text_projection": torch.ones(64)}, r"clip.text_projection has the shape \(64,\)"),
        "mlp.bin": (state | {"similarity_dense.0.weight": torch.ones(64, 128)}, "its similarity is DRL's mlp"),
        "unknown.bin": (
            state | {"prompt.ctx": torch.ones(1)},
            "unknown.bin cannot be imported: it has 1 tensors that no",
        ),
        "lacking.bin": ({n: v for n, v in state.items() if "lstm_visual.bias_hh" not in n}, "missing from the file"),
        "huge.bin": (
            state | {"clip.ln_final.weight": torch.zeros(1).expand(10**12)},
            "does not hold all values of clip.ln",
        ),
        "nan.bin": (state | {"clip.logit_scale": torch.tensor(torch.nan)}, "NaN or infinite"),
    }
    for name, (content, message) in contents.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(WaverError, match=message):
            import_checkpoint(tmp_path / name, "wrong", project / "experiment.yaml")
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(FieldCheckpointError, match=r"gone\.bin does not exist"):
        import_checkpoint(tmp_path / "gone.bin", "wrong", project / "experiment.yaml")
    assert not (project / "storage" / "runs" / "wrong").exists()


def test_a_name_that_a_run_cannot_have_is_told_with_its_option(drl, project):
    with pytest.raises(ConfigError, match=r"--as 'a/b' is no name of a run: use letters"):
        import_checkpoint(drl[0], "a/b", project / "experiment.yaml")


def test_frames_without_a_size_have_that_of_the_checkpoint(drl, project):
    checkpoint, _ = import_checkpoint(drl[0], "sized", project / "experiment.yaml", {"video.size": None})
    assert checkpoint_config(checkpoint).video.size == 16


def test_wrapped_and_safe_files_are_read_alike(drl, tmp_path, project):
    state = torch.load(drl[0], weights_only=True)
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "wrapped.pth")
    torch.save({"ema": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}}, tmp_path / "ema.pth")
    backbone = {f"model.{name}": tensor for name, tensor in state.items() if name.startswith("clip.")}
    torch.save(backbone, tmp_path / "mean_of_frames.bin")  # `clip.` is part of the names, though all names have it
    save_file(state, tmp_path / "same.safetensors")
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        checkpoint, _ = import_checkpoint(path, f"alike{number}", project / "experiment.yaml")
        assert torch.equal(imported(checkpoint.parent).logit_scale, drl[1].logit_scale)


def test_a_run_that_was_interrupted_while_it_was_made_is_made_again(drl, project):
    checkpoint, _ = import_checkpoint(drl[0], "broken", project / "experiment.yaml")
    (checkpoint.parent / "result.json").unlink()
    config = checkpoint_config(checkpoint)
    with pytest.raises(RunError, match=r"holds a model that waver did not train \(imported\)"):
        check_run(checkpoint.parent, config, {})
    again, _ = import_checkpoint(drl[0], "broken", project / "experiment.yaml")
    assert again == checkpoint
    assert (checkpoint.parent / "result.json").exists()


@pytest.mark.slow
def test_a_run_in_an_object_store_is_read_elsewhere(drl, project, s3, tmp_path, monkeypatch):
    import_checkpoint(drl[0], "remote", project / "experiment.yaml", {"storage.path": s3})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    run = local_copy(f"{s3}/runs/remote")
    checkpoint = find_checkpoint(run)
    assert read_origin(checkpoint).kind == "imported"
    assert torch.equal(load_student(checkpoint, checkpoint_config(checkpoint)).logit_scale, drl[1].logit_scale)
    with pytest.raises(RunError, match="holds a run already"):
        import_checkpoint(drl[0], "remote", project / "experiment.yaml", {"storage.path": s3})
