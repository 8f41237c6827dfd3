import hashlib
import json
from dataclasses import asdict

import open_clip
import pytest
import yaml
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from waver.config import load_config
from waver.config.preprocessing import Preprocessing, PreprocessingError, find_preprocessing
from waver.runs.inputs import store_settings
from waver.tools.hub import HubError

PAIRS = [(name, tag) for name in open_clip.list_models() for tag in open_clip.list_pretrained_tags_by_model(name)]
MAPPING = {"embed_dim": 32, "vision_cfg": {"layers": 1, "width": 32}, "text_cfg": {}}


def of_open_clip(name: str, settings: dict) -> dict:
    """What open_clip's `create_model` sets for a model with these settings of its weights."""
    size = open_clip.get_model_config(name)["vision_cfg"].get("image_size", 224)
    return merge_preprocess_dict(asdict(PreprocessCfg()), settings) | {"size": size}


def test_every_pretrained_tag_has_the_preprocessing_of_open_clip():
    assert len(PAIRS) > 150
    for name, tag in PAIRS:
        theirs = of_open_clip(name, open_clip.get_pretrained_cfg(name, tag))
        ours = find_preprocessing(name, tag)
        assert (ours.size, ours.resize, ours.interpolation, ours.mean, ours.std) == (
            theirs["size"],
            theirs["resize_mode"],
            theirs["interpolation"],
            tuple(theirs["mean"]),
            tuple(theirs["std"]),
        ), (name, tag)
        assert f"{tag} of {name}" in ours.source


@pytest.mark.parametrize(
    ("name", "expected", "source"),
    [
        ("ViT-B-32", Preprocessing(), "the values of all of open_clip's weights of ViT-B-32"),
        ("MobileCLIP-B", Preprocessing(224, "shortest", "bilinear", (0.0,) * 3, (1.0,) * 3), "the values of all"),
        ("ViT-B-16-SigLIP-384", Preprocessing(384, "squash", "bicubic", (0.5,) * 3, (0.5,) * 3), "the values of all"),
        ("PE-Core-T-16-384", Preprocessing(384, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3), "the values of all"),
        # One tag of eleven has another mean.
        ("ViT-L-14", Preprocessing(), "CLIP's values, since those of open_clip's weights of ViT-L-14 differ"),
        ("ViT-S-16", Preprocessing(), "CLIP's values, since no others are known"),
        ("ViT-B-31", Preprocessing(), "CLIP's values, since no others are known"),
        (MAPPING, Preprocessing(), "CLIP's values, since no others are known"),
    ],
)
def test_a_plain_file_has_the_preprocessing_of_its_name(name, expected, source):
    for weights in ("nowhere/weights.pt", None):
        found = find_preprocessing(name, weights)
        assert asdict(found) | {"source": ""} == asdict(expected) | {"source": ""}
        assert found.source.startswith(source)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "open_clip_config.json",
            {
                "model_cfg": {"embed_dim": 8, "vision_cfg": {"image_size": [96, 96]}, "text_cfg": {}},
                "preprocess_cfg": {
                    "mean": [0, 0, 0],
                    "std": [1, 1, 1],
                    "interpolation": "bilinear",
                    "resize_mode": "squash",
                },
            },
            Preprocessing(96, "squash", "bilinear", (0.0,) * 3, (1.0,) * 3),
        ),
        ("open_clip_config.json", {"model_cfg": {"vision_cfg": {}}, "preprocess_cfg": {}}, Preprocessing()),
        (
            "preprocessor_config.json",  # of CLIP
            {
                "size": {"shortest_edge": 336},
                "crop_size": {"height": 336, "width": 336},
                "do_center_crop": True,
                "resample": 3,
            },
            Preprocessing(336),
        ),
        (
            "preprocessor_config.json",  # of SigLIP
            {"size": {"height": 256, "width": 256}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            Preprocessing(256, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3),
        ),
        ("preprocessor_config.json", {"size": 224, "crop_size": 224, "do_center_crop": True}, Preprocessing()),
    ],
)
def test_a_downloaded_folder_says_its_preprocessing(tmp_path, name, content, expected):
    (tmp_path / name).write_text(json.dumps(content))
    for place in (tmp_path, tmp_path / "model.safetensors"):
        found = find_preprocessing("ViT-S-32", str(place))
        assert asdict(found) | {"source": ""} == asdict(expected) | {"source": ""}
        assert str(place) in found.source


def test_a_folder_that_wants_another_resizing_is_refused(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": {"resize_mode": "longest"}}))
    with pytest.raises(
        PreprocessingError, match=r"resize = longest, which waver does not have: set video.resize to one"
    ):
        find_preprocessing("ViT-B-32", str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(HubError, match=r"is not JSON .*: download it again"):
        find_preprocessing("ViT-B-32", str(tmp_path / "weights.bin"))


CLIPS = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "image_mean": [0.4, 0.4, 0.4]}
"""The beginning of a preprocessor_config.json of CLIP."""


@pytest.mark.parametrize(
    ("settings", "message", "remedy"),
    [
        ({"size": {"shortest_edge": 40}}, r"squares without margin: set video\.size", {"video.size": 32}),
        ({"crop_size": {"height": 32, "width": 48}}, r"squares without margin", {"video.size": 32}),
        ({"resample": 1}, r"set video\.interpolation to one of", {"video.interpolation": "bicubic"}),
        ({"do_rescale": False}, r"pixels are between 0 and 1: set do_rescale", None),
        ({"rescale_factor": 1 / 127.5}, r"pixels are between 0 and 1: set do_rescale", None),
        ({"image_mean": 0.5}, r"mean or standard deviation 0\.5, which should be three numbers", None),
    ],
    ids=str,
)
def test_what_waver_cannot_do_is_refused_unless_settings_replace_it(tmp_path, settings, message, remedy):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CLIPS | settings))
    with pytest.raises(PreprocessingError, match=message):
        find_preprocessing(MAPPING, str(tmp_path))
    if remedy:
        path = tmp_path / "experiment.yaml"
        path.write_text("name: x\ndata: {format: table, annotations: a.jsonl, videos: v}")
        overrides = {"model.backbone": MAPPING, "model.weights": str(tmp_path), **remedy}
        found = load_config(path, overrides).preprocessing
        assert (found.size, found.interpolation, found.mean) == (32, "bicubic", (0.4, 0.4, 0.4))


def test_pixels_that_are_not_normalised_have_mean_0_and_standard_deviation_1(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CLIPS | {"do_normalize": False}))
    found = find_preprocessing(MAPPING, str(tmp_path))
    assert (found.mean, found.std) == ((0, 0, 0), (1, 1, 1))


def test_a_repository_of_the_hub_is_read_from_its_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        HubError,
        match=r"hf-hub:someone/clip: its open_clip_config.json was not downloaded before, .* fails .*HF_HUB_OFFLINE",
    ):
        find_preprocessing("ViT-B-32", "hf-hub:someone/clip")
    folder = tmp_path / "models--someone--clip"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("abc")
    (folder / "snapshots/abc").mkdir(parents=True)
    (folder / "snapshots/abc/open_clip_config.json").write_text(
        json.dumps({"preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}})
    )
    assert find_preprocessing("ViT-B-32", "hf-hub:someone/clip").mean == (0.1, 0.2, 0.3)


@pytest.fixture
def load(tmp_path):
    def load(*, stored: bool = False, **overrides):
        path = tmp_path / "experiment.yaml"
        path.write_text("{name: a, data: {format: table, annotations: a.csv, videos: videos}}")
        return load_config(path, overrides, stored=stored)

    return load


SIGLIP = {"model.backbone": "ViT-B-16-SigLIP-384", "model.weights": "webli"}


def test_settings_stand_above_the_model(load):
    found = load(**SIGLIP, **{"video.size": 128, "model.pixel_mean": [0.1, 0.2, 0.3]}).preprocessing
    assert (found.size, found.resize, found.mean, found.std) == (128, "squash", (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    usual = Preprocessing()
    everything = {f"video.{name}": getattr(usual, name) for name in ("size", "resize", "interpolation")}
    everything |= {"model.pixel_mean": usual.mean, "model.pixel_std": usual.std}
    assert load(**SIGLIP, **everything).preprocessing.source == "the values of the configuration"


def test_the_store_is_keyed_by_how_frames_are_resized(load):
    """CLIP's keeps the name and the settings that it had before waver knew any other."""
    usual, squashed = load(), load(**SIGLIP)
    assert usual.clip_store == load(**{"video.size": 224, "video.resize": "shortest"}).clip_store
    video = {"frames_per_second": 1.0, "max_frames": 12, "size": 224}
    key = {"videos": str(usual.data.videos), "video": video, "frames": ("raw", None)}
    before = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    assert usual.clip_store.name == f"videos-{before}"
    assert "resize" not in store_settings(usual).key
    assert store_settings(squashed).key["resize"] == "squash"
    assert len({usual.clip_store, squashed.clip_store, load(**SIGLIP, **{"video.resize": "shortest"}).clip_store}) == 3


def test_a_run_of_before_keeps_the_preprocessing_that_it_was_trained_with(load):
    found = load(stored=True, **SIGLIP, **{"video.size": 384}).preprocessing
    assert asdict(found) == asdict(Preprocessing(384, source="the values of the configuration"))
    assert load(stored=True, **SIGLIP, **{"video.resize": None, "model.pixel_mean": None, "model.pixel_std": None,
                                         "video.interpolation": None}).preprocessing.resize == "squash"  # fmt: skip


def test_runs_of_equal_preprocessing_have_the_same_identity(load):
    usual = Preprocessing()
    explicit = {
        "video.size": 224,
        "video.resize": "shortest",
        "model.pixel_mean": usual.mean,
        "model.pixel_std": usual.std,
    }
    assert load().digest() == load(**explicit).digest()
    assert load().digest() != load(**{"model.pixel_mean": [0.0, 0.0, 0.0]}).digest()


def test_the_lines_of_the_readme_name_models_and_weights_that_are_there(repository, tmp_path):
    """Each is loaded as an experiment; tags and names are looked up, as nothing can be downloaded here."""
    section = (repository / "README.md").read_text().split("## Which model and which weights")[1].split("```")[1]
    models = [yaml.safe_load(line)["model"] for line in section.splitlines() if line.startswith("model:")]
    assert len(models) == 5
    for model in models:
        experiment = {"name": "a", "data": {"format": "table", "annotations": "a.csv", "videos": "v"}, "model": model}
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(experiment))
        config = load_config(tmp_path / "a.yaml")
        if config.model.backbone.startswith("hf-hub:"):
            assert config.model.weights == config.model.backbone
            continue
        assert config.model.backbone in open_clip.list_models()
        if not config.model.weights.startswith("/"):
            assert config.model.weights in open_clip.list_pretrained_tags_by_model(config.model.backbone)


def test_runs_of_a_repository_of_the_hub_are_compared_without_it(load, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    one, other = (load(**{"model.weights": "hf-hub:nobody/clip", "train.lr": lr}) for lr in (1e-3, 1e-4))
    assert one.identity()["video"]["size"] is None
    assert one.digest() != other.digest()
    with pytest.raises(HubError, match=r"hf-hub:nobody/clip"):
        _ = one.clip_store


def test_a_name_is_not_read_as_a_path(tmp_path, monkeypatch):
    """The working folder may hold the configuration of another model."""
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}}))
    monkeypatch.chdir(tmp_path)
    for weights in (None, "a tag", "/nowhere/weights.pt"):
        assert find_preprocessing("ViT-M-32", weights).mean == Preprocessing.mean
