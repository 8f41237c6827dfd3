"""The section `knowledge.teacher`, the experiment in which the teacher embeds, and `knowledge.matching`."""

import pytest

from waver.config import ConfigError

SOFT = {"loss.phrases_text": 1, "knowledge.top_k": 3}
WIDE = {
    "embed_dim": 48,
    "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 24},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture
def load(load_knowing, tmp_path):
    """Returns a function that loads an experiment with soft targets; `weights` is a file that need not be weights."""
    (tmp_path / "other.pt").touch()

    def experiment(**overrides):
        return load_knowing(**SOFT, **overrides)

    return experiment


def test_without_a_teacher_the_student_is_its_own(load):
    config = load()
    assert config.teacher is config
    assert not config.has_other_teacher
    assert not load(**{"knowledge.teacher": {}}).has_other_teacher
    named = {"weights": config.model.weights, "backbone": config.model.backbone, "frames": config.video.max_frames}
    same = load(**{"knowledge.teacher": named})
    assert not same.has_other_teacher
    assert same.knowledge_store == config.knowledge_store


def test_another_backbone_reads_frames_as_it_was_trained(load, tmp_path):
    other = str(tmp_path / "other.pt")
    pixels = {"model.pixel_mean": [0.1, 0.2, 0.3], "video.interpolation": "bilinear"}
    config = load(**pixels, **{"knowledge.teacher": {"backbone": WIDE, "weights": other}})
    teacher = config.teacher
    assert (teacher.preprocessing.size, teacher.preprocessing.interpolation) == (24, "bicubic")
    assert teacher.preprocessing.mean != config.preprocessing.mean
    assert (teacher.model.backbone, teacher.model.weights) == (WIDE, other)
    assert teacher.video.max_frames == config.video.max_frames
    assert teacher.teacher is teacher
    for place in ("clip_store", "frame_embeddings", "token_embeddings"):
        assert getattr(teacher, place) != getattr(config, place)


def test_other_weights_of_the_same_backbone_read_the_same_frames(load, tmp_path):
    pixels = {"model.pixel_mean": [0.1, 0.2, 0.3]}
    config = load(**pixels, **{"knowledge.teacher.weights": str(tmp_path / "other.pt")})
    assert config.teacher.preprocessing.mean == config.preprocessing.mean == (0.1, 0.2, 0.3)
    assert config.teacher.clip_store == config.clip_store
    assert config.teacher.frame_embeddings != config.frame_embeddings
    more = load(**{"knowledge.teacher.frames": 7})
    assert more.teacher.video.max_frames == 7
    assert more.teacher.model == more.model
    assert more.teacher.clip_store != more.clip_store


def test_each_teacher_and_each_way_of_matching_has_its_knowledge(load, tmp_path):
    other = {"knowledge.teacher.weights": str(tmp_path / "other.pt")}
    asked = [
        {},
        other,
        {"knowledge.teacher.frames": 7},
        other | {"knowledge.teacher.frames": 7},
        {"knowledge.matching": "centred"},
        other | {"knowledge.matching": "centred"},
    ]
    configs = [load(**settings) for settings in asked]
    assert len({config.knowledge_store for config in configs}) == len(asked)
    assert len({config.digest() for config in configs}) == len(asked)
    assert len({config.clip_store for config in configs}) == 1, "the student reads the same frames"
    assert "teacher" not in configs[0].identity()["knowledge"], "the hash is that of earlier versions"
    assert "matching" not in configs[0].identity()["knowledge"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"knowledge.teacher": {"backbone": WIDE}}, r"knowledge\.teacher\.weights is not set: name a"),
        (
            {"knowledge.teacher": {"frames": 7}, "loss.phrases_text": 0, "knowledge.top_k": 0},
            r"knowledge\.teacher is set, but the experiment uses no phrases and no loss",
        ),
        ({"knowledge.teacher": {"frames": 7}, "knowledge.released": ["a.json"]}, r"released names .* another teacher"),
        (
            {"knowledge.matching": "centred", "knowledge.released": ["a.json"]},
            r"matched already: set knowledge\.matching",
        ),
        ({"knowledge.matching": "centred", "embeddings.use": "never"}, r"centred reads the stored embeddings"),
        ({"knowledge.teacher": {"backbone": 3}}, r"teacher\.backbone: 3: is neither a name nor a mapping"),
        ({"knowledge.teacher": {"frame": 3}}, r"knowledge\.teacher\.frame: unknown key"),
        (
            {"model.weights": None, "knowledge.top_k": 0, "loss.phrases_text": 0, "loss.keep": 1},
            r"loss\.keep = 1 keeps what .* model\.weights = null",
        ),
    ],
)
def test_contradictions_are_told(load_knowing, overrides, expected):
    with pytest.raises(ConfigError, match=expected):
        load_knowing(**SOFT | overrides)


def test_a_student_without_weights_can_learn_the_similarities_of_a_teacher(load_knowing, tmp_path):
    teacher = {"knowledge.teacher.weights": str(tmp_path / "other.pt"), "loss.keep": 1}
    config = load_knowing(**{"model.weights": None, "knowledge.top_k": 0}, **teacher)
    assert config.teacher.model.weights == str(tmp_path / "other.pt")
