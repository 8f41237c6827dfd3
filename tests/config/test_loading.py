from pathlib import Path

import pytest

from waver.config import (
    ConfigError,
    ExperimentConfig,
    load_config,
    load_robustness,
    load_unresolved,
    parse_overrides,
)
from waver.config.training import LOSS_TERM_NAMES
from waver.tools.object_store import remote_of

SMALL = "name: x\ndata: {format: table, annotations: a.jsonl, videos: v}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(text)
    return path


REPOSITORY = Path(__file__).parents[2]
BASELINES = sorted(REPOSITORY.glob("experiments/baselines/*.yaml"))
STUDIES = REPOSITORY.glob("experiments/style_world/*.yaml")
SHIPPED = sorted([*REPOSITORY.glob("experiments/*.yaml"), *STUDIES, *BASELINES, *REPOSITORY.glob("waver/**/*.yaml")])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_yaml_is_an_experiment(path: Path):
    assert isinstance(load_config(path), ExperimentConfig)


@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.stem)
def test_every_baseline_says_where_it_and_its_figures_come_from(path: Path):
    text = path.read_text()
    head = text[: text.index("name:")]
    for start in ("# Source", "# Published", "# Measured here: none."):
        assert f"\n{start}" in head
    assert "arXiv" in head
    assert ("R@1" in head) == ("Published: none" not in head), "figures, or that there are none"
    assert f"\nname: {path.stem}\n" in text


def test_the_baselines_of_clip4clip_and_drl_differ_only_in_the_model():
    configs = {name: load_config(REPOSITORY / "experiments" / "baselines" / f"{name}.yaml").model_dump() for name in (
        "clip4clip_meanp", "clip4clip_seqtransf", "drl_wti")}  # fmt: skip
    kinds = {name: (config["model"]["temporal"], config["similarity"]["kind"]) for name, config in configs.items()}
    assert kinds == {
        "clip4clip_meanp": ("none", "dp"),
        "clip4clip_seqtransf": ("seqTransf", "dp"),
        "drl_wti": ("seqTransf", "wti"),
    }
    ours = load_config(REPOSITORY / "experiments" / "msrvtt.yaml").model_dump()
    for config in configs.values():
        assert {key for key in config if config[key] != ours[key]} <= {"name", "model", "similarity", "text"}
        assert config["text"] == ours["text"] | {"prompt": None}


def test_published_recipe_of_msrvtt(repository: Path):
    config = load_config(repository / "experiments" / "msrvtt.yaml")
    assert (config.train.epochs, config.train.global_batch_size, config.train.lr) == (5, 128, 1e-4)
    assert config.train.captions_per_clip == 20
    assert (config.train.backbone_lr_scale, config.train.warmup_fraction, config.train.weight_decay) == (1e-3, 0.1, 0.2)
    assert (config.text.max_words, config.video.max_frames, config.video.frames_per_second) == (32, 12, 1)
    assert (config.similarity.kind, config.similarity.wti_layers, config.model.temporal) == ("wti", 2, "seqTransf")
    assert config.text.prompt == "This is a video about {}."


@pytest.mark.parametrize(
    ("name", "captions_per_clip", "max_words", "max_frames"),
    [("msvd", None, 32, 12), ("vatex", 10, 32, 12), ("didemo", 1, 64, 64)],
)
def test_other_recipes_differ_from_msrvtt_only_in_the_settings_they_name(
    repository: Path, name, captions_per_clip, max_words, max_frames
):
    base, config = (load_config(repository / "experiments" / f"{each}.yaml").model_dump() for each in ("msrvtt", name))
    assert (config.pop("name"), config["data"].pop("format")) == (name, name)
    del base["name"], base["data"], config["data"]
    base["train"]["captions_per_clip"] = captions_per_clip
    base["text"]["max_words"], base["video"]["max_frames"] = max_words, max_frames
    assert config == base


def test_numbers_with_exponent_are_numbers(tmp_path):
    path = write(tmp_path, SMALL + "train: {lr: 1e-4}\nmodel: {backbone: {embed_dim: 1e3}}\n")
    assert load_config(path).train.lr == 1e-4
    assert load_config(path).model.backbone == {"embed_dim": 1000.0}


def test_all_mistakes_at_once_with_path_value_and_remedy(tmp_path):
    path = write(
        tmp_path,
        "name: a b\ndata: {format: table, videos: v, splitt: 9k}\ntrain: {lr: abc, epoch: 3, epochs: 0}\ncolour: 1\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    for expected in (
        "7 mistakes",
        "name: 'a b'",
        "data.annotations: is missing; Folder with the annotation files",
        "data.splitt: unknown key",
        "train.lr: 'abc'",
        "train.epoch: unknown key; did you mean epochs?",
        "train.epochs: 0",
        "colour: unknown key; known keys here: name, seed, data",
    ):
        assert expected in message
    assert "data.table" not in message


@pytest.mark.parametrize("data", ["{format: msrvt, videos: v}", "{videos: v}"])
def test_unknown_data_set_error_lists_the_known_ones(tmp_path, data):
    with pytest.raises(ConfigError, match=r"data.format: .*msrvtt, msvd, vatex, didemo, table"):
        load_config(write(tmp_path, f"name: x\ndata: {data}\n"))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("format: msvd, split: hgr", "data.split: 'hgr': input should be 'official' "),
        ("format: vatex, split: full", "data.split: 'full': input should be 'hgr' or '1k5' "),
        ("format: vatex, splitt: hgr", "data.splitt: unknown key; did you mean split?"),
        ("format: msvd, validation_seed: 1", "data.validation_seed: unknown key; "),
        ("format: didemo, allow_missing_captions: some", "data.allow_missing_captions: 'some': "),
        ("format: table, split: full", "data.split: unknown key; known keys here: annotations, videos, "),
        (
            "format: msrvtt, validation_fraction: 1",
            "(Share of the training videos to hold out for validation",
        ),
        ("format: [msvd]", "data.format: must be one of msrvtt, msvd, "),
    ],
)
def test_mistakes_in_a_data_set(tmp_path, data, expected):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, f"name: x\ndata: {{annotations: a, videos: v, {data}}}\n"))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [", "not YAML: .* line 1, column"),
        ("- a\n- b\n", "an experiment is a mapping"),
        (SMALL + "name: y\n", "duplicate key 'name' in line 3"),
        (SMALL + "text: {prompt: no place}\n", "text.prompt: 'no place': it must contain {}"),
        (SMALL + "loss: {contrastive: 0}\n", "all weights are 0"),
        (
            SMALL + "train: {global_batch_size: 4}\nresources: {workers: 3}\n",
            "more than half of train.global_batch_size",
        ),
        (SMALL + "train: {lr: .nan}\n", "train.lr: nan"),
    ],
)
def test_one_mistake(tmp_path, text, expected):
    with pytest.raises(ConfigError, match=expected):
        load_config(write(tmp_path, text))


def test_missing_file_error_lists_the_files_in_its_folder(tmp_path):
    write(tmp_path, SMALL)
    with pytest.raises(ConfigError, match=r"no such file; did you mean .*experiment.yaml\?$"):
        load_config(tmp_path / "experimnt.yaml")
    with pytest.raises(ConfigError, match=rf"no such file; in {tmp_path} there is: experiment.yaml$"):
        load_config(tmp_path / "kitchen.yaml")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("lr", "did you mean train.lr?"),
        ("size", "did you mean video.size?"),
        ("train.size", "did you mean video.size?"),
        ("model.epochs", "did you mean train.epochs?"),
        ("learning_rate", "did you mean train.lr?"),
        ("batch_size", "did you mean train.global_batch_size or evaluate.batch_size?"),
        ("num_samples", "it is a key of a sweep, which `waver tune` runs"),
        ("num_sample", "did you mean num_samples, a key of a sweep, which `waver tune` runs?"),
        ("colour", "known keys here: name, seed, data"),
        ("train.lrr", "did you mean lr?"),
    ],
)
def test_a_key_in_another_place_is_found(tmp_path, key, hint):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, SMALL), {key: 1})
    assert f"{key}: unknown key; {hint}" in str(caught.value)


def test_several_settings_in_one_override_are_an_error():
    with pytest.raises(ConfigError, match="write one --set for each setting"):
        parse_overrides(["train.epochs=3,train.lr=2"])
    assert parse_overrides(["text.prompt='a, b of {}'"]) == {"text.prompt": "a, b of {}"}


@pytest.mark.parametrize("assignment", ["model.weights=", "train.lr= ", "name="])
def test_an_empty_value_is_not_null(assignment):
    """An unset variable of the shell would give random weights."""
    with pytest.raises(ConfigError, match=r"the value is empty; write \S+=null for none"):
        parse_overrides([assignment])


def test_other_files_are_named_for_what_they_are(tmp_path):
    path = write(tmp_path, SMALL)
    (tmp_path / "search.yaml").write_text("name: s\nbase: experiment.yaml\nspace: {train.lr: {choice: [1]}}\n")
    (tmp_path / "report.yaml").write_text("tracks: [natural]\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.yaml").touch()
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "sweep.yaml").touch()
    for load, name, message in (
        (load_config, "search.yaml", r"is a sweep, .*`waver tune \S+search.yaml`; its experiment is .*experiment.yaml"),
        (load_config, "report.yaml", r"has the settings of a report, .*`waver robustness RUN --config \S+report.yaml`"),
        (load_config, "run", r"is the folder of a run; name its configuration, .*run/config.yaml"),
        (load_config, "tuned", r"is the folder of a sweep; name its configuration, .*tuned/sweep.yaml"),
        (
            load_config,
            ".",
            r"is a folder: name the YAML file of a configuration; in it there is: experiment.yaml, report",
        ),
        (load_config, "experiment", r"no such file; did you mean .*experiment.yaml\?"),
        (load_robustness, "experiment.yaml", r"is an experiment; --config takes the settings of a report \(split, "),
    ):
        with pytest.raises(ConfigError, match=message):
            load(path.parent / name)


def test_overrides_are_validated_like_the_file(tmp_path):
    path = write(tmp_path, SMALL)
    overrides = parse_overrides(
        ["train.lr=3e-5", "model.weights=null", "similarity.kind=ti", "model.backbone={embed_dim: 3}"]
    )
    config = load_config(path, overrides)
    assert (config.train.lr, config.model.weights, config.similarity.kind) == (3e-5, None, "ti")
    assert config.model.backbone == {"embed_dim": 3}
    with pytest.raises(ConfigError, match=r"train.lrr: unknown key; did you mean lr\?"):
        load_config(path, {"train.lrr": 1})
    with pytest.raises(ConfigError, match=r"--set train.lr: write it as(.|\n)*--set a=\[: the value is not YAML"):
        parse_overrides(["train.lr", "a=["])


def test_configuration_is_immutable(tmp_path):
    config = load_config(write(tmp_path, SMALL))
    with pytest.raises(ValueError, match="frozen"):
        config.train.lr = 1.0


def test_written_configuration_reads_as_itself(tmp_path):
    config = load_config(write(tmp_path, SMALL), {"train.lr": 1e-7, "model.backbone": {"embed_dim": 3}})
    again = load_config(write(tmp_path, config.to_yaml()))
    assert again == config
    assert again.digest() == config.digest()
    assert load_config(write(tmp_path, SMALL)).digest() != config.digest()


def test_clip_store_depends_on_videos_and_decoding_settings_only(tmp_path):
    path = write(tmp_path, SMALL)
    base = load_config(path).clip_store
    assert load_config(path, {"train.lr": 1.0, "ingest.jpeg_quality": 50}).clip_store == base
    assert load_config(path, {"video.size": 112}).clip_store != base
    assert load_config(path, {"ingest.frame_format": "jpeg"}).clip_store != base
    didemo = load_config(
        path, {"data": {"format": "didemo", "annotations": "a", "videos": str(load_config(path).data.videos)}}
    )
    assert didemo.data.videos == load_config(path).data.videos
    assert didemo.clip_store != base, "the same ids mean the first 31 seconds"


def test_the_experiments_on_msrvtt_differ_only_in_what_they_say(repository: Path):
    """Differences from the one without knowledge, by section."""
    names = ("msrvtt", "msrvtt_wti", "msrvtt_waver", "msrvtt_waver_distilled")
    configs = {name: load_config(repository / "experiments" / f"{name}.yaml").model_dump() for name in names}
    for name, config in configs.items():
        assert config.pop("name") == name
    plain = configs["msrvtt_wti"]
    different = {
        name: {section for section in config if config[section] != plain[section]} for name, config in configs.items()
    }
    assert different == {
        "msrvtt": set(),
        "msrvtt_wti": set(),
        "msrvtt_waver": {"knowledge", "model"},
        "msrvtt_waver_distilled": {"knowledge", "loss"},
    }


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    """Workers run in folders of their own, and so may who evaluates a run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pt").touch()
    config = load_config(write(tmp_path, SMALL + "model: {weights: w.pt}\nstorage: {path: ~/kept}\n"))
    assert config.data.annotations == tmp_path / "a.jsonl"
    assert config.data.videos == tmp_path / "v"
    assert config.model.weights == str(tmp_path / "w.pt")
    assert config.storage.folder == Path.home() / "kept"
    assert load_config(write(tmp_path, SMALL)).storage.folder == tmp_path / "storage"
    assert load_config(write(tmp_path, SMALL)).model.weights == "openai"


def test_load_unresolved_keeps_paths_as_written(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("name: x\ndata: {format: table, videos: videos}\nknowledge: {released: [a.json, ~/b.json]}\n")
    assert load_unresolved(path, {"data.videos": "/v", "storage.path": "s"}) == {
        "name": "x",
        "data.format": "table",
        "data.videos": "/v",
        "knowledge.released": ["a.json", "~/b.json"],
        "storage.path": "s",
    }


KNOWS = {"knowledge.top_k": 3}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"loss.knowledge": 0.5}, r"loss.knowledge = 0.5 needs phrases, but knowledge.top_k = 0"),
        ({"loss.distill": 2}, r"loss.distill = 2 needs phrases, but knowledge.top_k = 0"),
        (
            KNOWS | {"loss.distill": 1, "knowledge.fusion": "none"},
            r"loss.distill = 1 .*knowledge.fusion = none: set knowledge.fusion to gated",
        ),
        (
            KNOWS | {"loss.distill": 1, "loss.informed": 0, "knowledge.at_inference": False},
            r"which nothing trains if loss.informed = 0: set loss.informed to 1",
        ),
        ({"knowledge.top_k": 31}, r"top_k = 31 is more than knowledge.num_matches = 30.*raise knowledge.num_matches"),
        (KNOWS | {"model.weights": None}, r"model.weights = null gives the teacher random weights"),
        (
            KNOWS | {"model.weights": None, "knowledge.fusion": "none", "loss.knowledge": 1},
            r"model.weights = null gives the teacher random weights",
        ),
        (
            KNOWS | {"loss.contrastive": 0, "loss.knowledge": 1},
            r"loss.contrastive = 0: no loss would train the retrieval",
        ),
        (
            KNOWS | {"loss.contrastive": 0, "loss.distill": 1},
            r"loss.contrastive = 0: no loss would train the retrieval",
        ),
        (
            KNOWS | {"loss.contrastive": 0, "loss.knowledge": 1, "knowledge.at_inference": False},
            r"or set knowledge.at_inference to false and loss.distill above 0",
        ),
        ({"loss.contrastive": 0, "loss.informed": 1}, r"all weights are 0"),
        ({"loss.contrastive": 0, "loss.keep": 1}, r"loss.contrastive = 0: no loss would train the retrieval"),
        ({"vocabulary.leaky": True}, r"of captions, vocabulary.splits decides: set vocabulary.leaky to false"),
        ({"vocabulary.file": "p.txt", "vocabulary.min_count": 2}, r"but all phrases come from vocabulary.file: remove"),
        ({"vocabulary.file": "p.txt", "vocabulary.splits": ["test"]}, r"set vocabulary.leaky to true if the file has"),
        ({"loss.temperature": 0}, r"loss.temperature: 0: .*greater than 0"),
        ({"loss.distill": -1}, r"loss.distill: -1: .*greater than or equal to 0"),
        ({"knowledge.top_k": -1}, r"knowledge.top_k: -1"),
        ({"knowledge.num_matches": 0}, r"knowledge.num_matches: 0"),
        ({"knowledge.prompt": "A video."}, r"knowledge.prompt: 'A video.': it must contain \{\} exactly once"),
        ({"knowledge.prompt": "{} or {}"}, r"it must contain \{\} exactly once"),
        ({"knowledge.fusion": "concat"}, r"knowledge.fusion: 'concat': .*'none', 'gated' or 'published'"),
        ({"knowledge.dropout": 1}, r"knowledge.dropout: 1: .*less than 1"),
        ({"model.initialisation": "bert"}, r"model.initialisation: 'bert': .*'torch' or 'published'"),
        ({"model.frame_norm": "batch"}, r"model.frame_norm: 'batch': .*'none' or 'layer'"),
        ({"vocabulary.splits": []}, r"vocabulary.splits: \[\]"),
        ({"vocabulary.splits": ["val"]}, r"vocabulary.splits.0: 'val'"),
        ({"vocabulary.min_count": 0}, r"vocabulary.min_count: 0"),
    ],
)
def test_inconsistent_knowledge_settings_are_errors(tmp_path, overrides, expected):
    with pytest.raises(ConfigError, match=expected):
        load_config(write(tmp_path, SMALL), overrides)


def test_consistent_loss_weights_are_accepted(tmp_path):
    for overrides in (
        {"loss.informed": 0},
        KNOWS | {"loss.distill": 1, "loss.informed": 0},  # with at_inference the term does not exist
        KNOWS | {"loss.distill": 1, "loss.contrastive": 0, "knowledge.at_inference": False},
        {"knowledge.top_k": 30},
        {"model.weights": None},
        KNOWS | {"model.weights": None, "knowledge.at_inference": False},  # nobody would look at a phrase
    ):
        config = load_config(write(tmp_path, SMALL), overrides)
        assert tuple(config.loss.weights) == LOSS_TERM_NAMES


@pytest.mark.parametrize(
    ("top_k", "fusion", "at_inference", "knowledge", "distill", "expected"),
    [  # expected: fusion, knowledge, informed at inference
        (0, "gated", True, 0, 0, (False, False, False)),
        (0, "none", False, 0, 0, (False, False, False)),
        (3, "published", True, 0, 0, (True, True, True)),
        (3, "gated", True, 1, 0, (True, True, True)),
        (3, "gated", True, 0, 1, (True, True, True)),
        (3, "gated", False, 0, 0, (False, False, False)),
        (3, "gated", False, 1, 0, (False, True, False)),
        (3, "gated", False, 0, 1, (True, True, False)),
        (3, "gated", False, 1, 1, (True, True, False)),
        (3, "none", True, 0, 0, (False, False, False)),
        (3, "none", True, 1, 0, (False, True, False)),
        (3, "none", False, 1, 0, (False, True, False)),
    ],
)
def test_when_phrases_are_needed(tmp_path, top_k, fusion, at_inference, knowledge, distill, expected):
    overrides = {
        "knowledge.top_k": top_k,
        "knowledge.fusion": fusion,
        "knowledge.at_inference": at_inference,
        "loss.knowledge": knowledge,
        "loss.distill": distill,
    }
    config = load_config(write(tmp_path, SMALL), overrides)
    assert (config.uses_fusion, config.uses_knowledge, config.informed_at_inference) == expected
    assert config.fusion_kind == (fusion if expected[0] else "none")


@pytest.mark.parametrize("stored", [False, True])
def test_the_old_name_of_the_published_fusion_is_read_and_hashed_as_before(tmp_path, stored):
    path = write(tmp_path, SMALL)
    old = load_config(path, KNOWS | {"knowledge.fusion": "attention"}, stored=stored)
    published, gated = (load_config(path, KNOWS | {"knowledge.fusion": kind}) for kind in ("published", "gated"))
    assert old.knowledge == published.knowledge
    assert old.knowledge.fusion == "published"
    assert old.identity()["knowledge"]["fusion"] == "attention"
    assert "attention" not in old.to_yaml()
    assert gated.digest() != published.digest()
    assert load_config(path).knowledge.fusion == "gated"


def test_settings_that_earlier_versions_lacked_are_hashed_only_if_they_change_something(tmp_path):
    path = write(tmp_path, SMALL)
    changes = {"model.frame_norm": "layer", "model.initialisation": "published", "knowledge.dropout": 0.1}
    base = load_config(path, KNOWS)
    hashed = base.identity()
    for key, value in changes.items():
        section, _, name = key.partition(".")
        assert name not in hashed[section]
        assert load_config(path, KNOWS | {key: value}).digest() != base.digest()


def test_a_fusion_that_nothing_reads_does_not_make_another_run(tmp_path):
    path = write(tmp_path, SMALL)
    now, before = load_config(path), load_config(path, {"knowledge.fusion": "attention"})
    assert now.identity() == before.identity()
    vision_only = KNOWS | {"knowledge.at_inference": False, "loss.knowledge": 1}
    now, before = (load_config(path, vision_only | {"knowledge.fusion": kind}) for kind in ("gated", "attention"))
    assert now.digest() == before.digest()


@pytest.mark.parametrize(
    ("overrides", "dictionary", "knowledge"),
    [  # whether another dictionary, another knowledge is meant
        ({"loss.contrastive": 0.5, "loss.knowledge": 1, "loss.distill": 2, "loss.temperature": 3}, False, False),
        ({"knowledge.top_k": 7}, False, False),
        ({"knowledge.at_inference": False, "knowledge.fusion": "none"}, False, False),
        ({"train.lr": 1, "seed": 3, "similarity.kind": "ti", "text.prompt": None, "name": "y"}, False, False),
        ({"resources.workers": 2, "evaluate.batch_size": 1, "data.allow_missing_videos": True}, False, False),
        ({"vocabulary.parser": "en_core_web_md"}, True, True),
        ({"vocabulary.splits": ["train", "test"]}, True, True),
        ({"vocabulary.min_count": 2}, True, True),
        ({"data.validation_seed": 1}, True, True),
        ({"data.validation_fraction": 0.1}, True, True),
        ({"data.annotations": "b.jsonl"}, True, True),
        ({"data.videos": "w"}, False, True),
        ({"knowledge.prompt": "{}"}, False, True),
        ({"model.weights": "laion2b_e16"}, False, True),
        ({"model.backbone": "ViT-B-16"}, False, True),
        ({"knowledge.num_matches": 31}, False, True),
        ({"video.size": 112}, False, True),
        ({"video.max_frames": 8}, False, True),
        ({"video.frames_per_second": 2}, False, True),
        ({"ingest.frame_format": "jpeg"}, False, True),
        ({"knowledge.released": ["a.json"]}, False, True),
    ],
)
def test_dictionary_and_knowledge_folders_depend_on_their_settings_only(tmp_path, overrides, dictionary, knowledge):
    path = write(tmp_path, SMALL)
    base, other = load_config(path, KNOWS), load_config(path, KNOWS | overrides)
    assert (other.dictionary != base.dictionary) == dictionary
    assert (other.knowledge_store != base.knowledge_store) == knowledge


def test_the_usual_fraction_is_hashed_as_in_earlier_versions(tmp_path):
    """They wrote 0.05 into every run and hashed it into the folder of the dictionary."""
    path = write(tmp_path, SMALL)
    now, before = load_config(path, KNOWS), load_config(path, KNOWS | {"data.validation_fraction": 0.05})
    assert now.data.validation_fraction is None
    assert (now.digest(), now.identity()) == (before.digest(), before.identity())
    assert (now.dictionary, now.knowledge_store) == (before.dictionary, before.knowledge_store)
    assert load_config(write(tmp_path, now.to_yaml())).data.validation_fraction is None


def test_styles_of_training_change_dictionary_and_digest_and_none_does_not(tmp_path):
    """Earlier versions trained on all styles, and their runs have no such key."""
    path = write(tmp_path, SMALL)
    all_styles, some = load_config(path, KNOWS), load_config(path, KNOWS | {"data.train_styles": ["plain", "terse"]})
    assert "train_styles" not in all_styles.identity()["data"]
    assert some.identity()["data"]["train_styles"] == ["plain", "terse"]
    assert some.digest() != all_styles.digest()
    assert some.dictionary != all_styles.dictionary
    assert some.knowledge_store != all_styles.knowledge_store
    assert some.clip_store == all_styles.clip_store, "clips are decoded once for all choices of styles"
    stored = all_styles.to_yaml().replace("  train_styles: null\n", "")
    assert "train_styles" not in stored
    assert load_config(write(tmp_path, stored), stored=True).digest() == all_styles.digest()


def test_styles_of_training_are_a_setting_of_tables_only(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.train_styles"):
        load_config(
            write(tmp_path, SMALL), {"data.format": "msrvtt", "data.train_styles": ["plain"], "data.annotations": "a"}
        )


def test_the_precision_of_embeddings_is_hashed_where_training_reads_them(tmp_path):
    """A run whose towers learn reads pixels, but `loss.keep` reads the frozen teacher's embeddings."""
    path = write(tmp_path, SMALL)

    def digests(**overrides) -> set[str]:
        return {
            load_config(path, {"embeddings.precision": precision, **overrides}).digest()
            for precision in ("fp32", "bf16")
        }

    assert len(digests()) == 1
    assert len(digests(**{"loss.keep": 1})) == len(digests(**{"train.freeze": ["vision"]})) == 2


def test_released_knowledge_does_not_depend_on_the_vocabulary_settings(tmp_path):
    path, released = write(tmp_path, SMALL), {"knowledge.released": ["a.json", "b.json"]}
    base = load_config(path, released)
    assert load_config(path, released | {"vocabulary.min_count": 2}).knowledge_store == base.knowledge_store
    assert load_config(path, {"knowledge.released": ["a.json"]}).knowledge_store != base.knowledge_store


def test_folders_are_below_storage_path(tmp_path):
    config = load_config(write(tmp_path, SMALL), {"storage.path": "/s", "data.annotations": "sets/mine.jsonl"})
    assert config.dictionary.parent == Path("/s/dictionaries")
    assert config.dictionary.name.startswith("mine-")
    assert config.knowledge_store.parent == Path("/s/knowledge")
    assert config.knowledge_store.name.startswith("v-")


@pytest.mark.parametrize(
    ("workers", "told"),
    [
        (
            "two",
            r"resources.workers: 'two': is neither a number nor a range \(Number of workers, or a range \{min: 2, max: 8\}",
        ),
        ({"min": 3, "max": 2}, r"resources.workers.*min = 3 is more than max = 2"),
        ({"min": 1, "max": 4}, r"resources.workers = 4 is more than half of train.global_batch_size = 6"),
        ({"min": 1}, r"resources.workers"),
    ],
)
def test_workers_are_a_number_or_a_range(load_tiny, workers, told):
    assert load_tiny(**{"resources.workers": 2}).resources.is_elastic is False
    resources = load_tiny(**{"resources.workers": {"min": 1, "max": 3}}).resources
    assert (resources.is_elastic, resources.min_workers, resources.max_workers) == (True, 1, 3)
    with pytest.raises(ConfigError, match=told):
        load_tiny(**{"resources.workers": workers})


# ---- storage in an object store


def test_storage_in_an_object_store_uses_its_local_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = load_config(write(tmp_path, SMALL), {"storage.path": "s3://bucket/mine/"})
    assert config.storage.path == "s3://bucket/mine"
    assert config.run_folder == tmp_path / "cache/waver-objects/s3/bucket/mine/runs/x"
    assert remote_of(config.clip_store) == f"s3://bucket/mine/clips/{config.clip_store.name}"
    there = load_config(write(tmp_path, config.to_yaml()), {"storage.cache": "/disk"})
    assert there.run_folder == Path("/disk/waver-objects/s3/bucket/mine/runs/x")
    assert there.digest() == config.digest()


@pytest.mark.parametrize("url", ["s3://key:hidden@bucket/mine", "s3://bucket/mine?secret_key=hidden"])
@pytest.mark.parametrize("key", ["storage.path", "data.videos", "storage", "storage.pth"])
def test_credentials_in_a_url_are_refused_and_not_repeated(tmp_path, url, key):
    with pytest.raises(ConfigError) as raised:
        load_config(write(tmp_path, SMALL), {key: url})
    assert "hidden" not in str(raised.value)
    if key == "storage.path":
        assert "environment of every node (AWS_ACCESS_KEY_ID" in str(raised.value)


def test_invalid_places_are_errors(tmp_path):
    with pytest.raises(
        ConfigError, match=r"storage.path: 'ftp://x': unsupported object store .* s3://, gs://, abfs://"
    ):
        load_config(write(tmp_path, SMALL), {"storage.path": "ftp://x"})
    with pytest.raises(ConfigError, match=r"data.videos: 's3://b/v': must be a path that every node can read"):
        load_config(write(tmp_path, SMALL), {"data.videos": "s3://b/v"})
    with pytest.raises(ConfigError, match=r"storage.path: 3: input should be a valid string"):
        load_config(write(tmp_path, SMALL), {"storage.path": 3})


def test_node_labels_are_those_of_ray_and_do_not_change_the_digest(tmp_path):
    path = write(tmp_path, SMALL)
    overrides = parse_overrides(["resources.node_labels={waver.role: train}", "ingest.node_labels={a/b: 'c-1'}"])
    labelled = load_config(path, overrides)
    assert labelled.resources.node_labels == {"waver.role": "train"}
    assert labelled.digest() == load_config(path).digest()
    assert load_config(path).ingest.node_labels == {}
    with pytest.raises(ConfigError, match=r"resources\.node_labels.*in\(a,b\)"):
        load_config(path, {"resources.node_labels": {"waver.role": "in(a,b)"}})


@pytest.mark.parametrize(("image_size", "size"), [(336, 224), (64, 32)])
def test_an_image_size_that_contradicts_the_size_of_frames_is_an_error(tmp_path, image_size, size):
    backbone = {"embed_dim": 32, "vision_cfg": {"image_size": image_size}, "text_cfg": {}}
    overrides = {"model.backbone": backbone, "video.size": size}
    with pytest.raises(ConfigError, match=rf"image_size = .*, but video.size = {size}: remove one of them"):
        load_config(write(tmp_path, SMALL), overrides)
    assert load_config(write(tmp_path, SMALL), overrides, stored=True).video.size == size


@pytest.mark.parametrize("image_size", [64, [64, 64]])
def test_an_image_size_that_is_the_size_of_frames_is_none(tmp_path, image_size):
    backbone = {"embed_dim": 32, "vision_cfg": {"image_size": image_size}, "text_cfg": {}}
    load_config(write(tmp_path, SMALL), {"model.backbone": backbone, "video.size": 64})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.freeze": ["visual"]}, r"train.freeze: .*'visual' is no part of the backbone: .* vision.4 or text.6"),
        ({"train.freeze": ["text.0"]}, r"train.freeze: .*'text.0' is no part of the backbone"),
        ({"train.freeze": ["vision", "vision.2"]}, r"train.freeze: .*name each tower once"),
        ({"model.lora.rank": 4, "model.weights": None}, r"model.lora adds to pre-trained weights, but model.weights = null"),
        ({"model.lora.rank": 4, "train.freeze": ["text"]}, r"train.freeze = \[text\]: model.lora freezes the pre-trained"),
        ({"model.lora.where": "image"}, r"model.lora.where: 'image'"),
    ],
)  # fmt: skip
def test_parts_to_freeze_and_adapt(tmp_path, settings, message):
    path = write(tmp_path, SMALL)
    assert load_config(path, {"train.freeze": ["vision.4", "text"]}).train.freeze == ("vision.4", "text")
    assert load_config(path, {"model.lora.rank": 4}).model.lora.where == "both"
    with pytest.raises(ConfigError, match=message):
        load_config(path, settings)


def test_frames_are_squares(tmp_path):
    backbone = {"embed_dim": 32, "vision_cfg": {"image_size": [64, 32]}, "text_cfg": {}}
    path = tmp_path / "experiment.yaml"
    path.write_text("{name: a, data: {format: table, annotations: a.csv, videos: videos}}")
    with pytest.raises(ConfigError, match=r"image_size = \[64, 32\], but waver's frames are squares"):
        load_config(path, {"model.backbone": backbone})
