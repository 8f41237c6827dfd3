"""`waver embed` on real Ray actors."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from waver.config import load_config
from waver.data.embedding_store import EmbeddingStore
from waver.doctor.findings import StartError
from waver.model.pretrained.weights import load_backbone
from waver.on_ray.stages.embed import run_embed
from waver.runs import embeddings
from waver.runs.inputs import load_captions, open_store
from waver.training.build import build_tokenizer


@pytest.fixture(scope="module")
def project(tmp_path_factory, build_project, captions, teacher_weights) -> Path:
    return build_project(tmp_path_factory.mktemp("project"), captions, teacher_weights)


def experiment(project: Path, **overrides):
    frozen = {"train.backbone_lr_scale": 0, "embeddings.precision": "fp32"}
    return load_config(project / "experiment.yaml", frozen | overrides)


def rows(folder: Path) -> dict[str, dict]:
    """Returns item -> its row, without checking anything."""
    blocks = [pq.read_table(file) for file in (folder / "items").glob("*.parquet")]
    return {row["id"]: row for row in pa.concat_tables(blocks).to_pylist()}


def test_this_process_and_two_actors_write_equal_rows_and_resume(project, monkeypatch, said):
    monkeypatch.setattr(embeddings, "_CLIPS_PER_BLOCK", 4)
    monkeypatch.setattr(embeddings, "_CAPTIONS_PER_BLOCK", 8)
    two = run_embed(experiment(project, **{"resources.workers": 2}), progress=False)
    captions = load_captions(experiment(project))
    store = open_store(experiment(project), captions)
    assert (two.num_clips, two.num_captions) == (26, len(set(captions["caption"].to_pylist())))
    by_two = {path: rows(path) for path in (two.paths.frames, two.paths.tokens)}
    assert set(by_two[two.paths.frames]) == set(store.ok_clip_ids())

    for path in by_two:
        blocks = sorted((path / "items").iterdir())
        assert len(blocks) > 4
        kept = {row for block in blocks[1::2] for row in pq.read_table(block)["id"].to_pylist()}
        for block in blocks[::2]:
            block.unlink()
        assert set(EmbeddingStore(path).missing(dict.fromkeys(kept, by_two[path][next(iter(kept))]["source"]))) == set()
    said.clear()
    one = run_embed(experiment(project, **{"resources.workers": 1}), progress=False)
    assert not [message for message in said if "Ray" in message], "one worker needs no Ray"
    assert one.paths == two.paths
    for path, expected in by_two.items():
        assert rows(path) == expected
        assert EmbeddingStore(path).manifest["complete"]
    _check_values(project, EmbeddingStore(two.paths.frames), EmbeddingStore(two.paths.tokens))


def _check_values(project: Path, frames: EmbeddingStore, tokens: EmbeddingStore) -> None:
    """Compares a store with the backbone in float64, one clip and one caption at a time."""
    config = experiment(project)
    captions = load_captions(config)
    store = open_store(config, captions)
    backbone = load_backbone(config.model.backbone, config.model.weights, image_size=config.video.size).eval().double()
    with torch.no_grad():
        for clip in store.ok_clip_ids():
            pixels, number = store.read([clip])
            valid = torch.from_numpy(pixels[0, : number[0]]).permute(0, 3, 1, 2).double()
            expected = backbone.clip.encode_image((valid / 255 - backbone.pixel_mean) / backbone.pixel_std)
            found, lengths = frames.read([(clip, store.blocks_of([clip])[clip])], 3)
            assert lengths[0] == number[0]
            np.testing.assert_allclose(found[0, : number[0]], expected.numpy(), rtol=0, atol=1e-5)
        for caption in captions["caption"].to_pylist():
            ids, mask = build_tokenizer(config)([caption], max_words=config.text.max_words, prompt=config.text.prompt)
            expected = backbone.encode_tokens(ids, mask)[0, : int(mask.sum())]
            found, lengths = tokens.read([(caption, "")], config.text.max_words)
            assert lengths[0] == mask.sum()
            np.testing.assert_allclose(found[0, : lengths[0]], expected.numpy(), rtol=0, atol=1e-5)


def test_without_clips_it_does_not_start(project):
    with pytest.raises(StartError, match="there is no clip store"):
        run_embed(experiment(project, **{"storage.path": str(project / "elsewhere")}))
