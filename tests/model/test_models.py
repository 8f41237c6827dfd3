"""Models of other kinds than CLIP: their towers, texts and pixels are those of open_clip."""

import copy
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from tokenizers import Tokenizer as Pieces
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from waver.config.preprocessing import find_preprocessing
from waver.data.video.resizing import Resizing, resize_frames
from waver.model.architecture import find_architecture
from waver.model.backbone import Backbone
from waver.model.errors import BackboneError
from waver.model.interaction import last_token
from waver.model.student import Student
from waver.model.tokenizer import find_tokenizer

TEXTS = ["A man rides a horse", "two dogs, playing!", "the " * 90]
WIDTH = 64
SMALL_TEXT = {"width": 64, "heads": 2, "layers": 2}
SMALL_VIT = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
KINDS = {
    # open_clip's name, whose description is kept but for its size
    "CLIP": ("ViT-B-32-quickgelu", SMALL_VIT, SMALL_TEXT),
    "ResNet": ("RN50", {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}, SMALL_TEXT),
    "EVA": ("EVA02-B-16", {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224}, SMALL_TEXT),
    "ConvNeXt": ("convnext_base", {"timm_model_name": "convnext_atto", "image_size": 224}, SMALL_TEXT),
    "MobileCLIP": ("MobileCLIP-S1", {"timm_model_name": "fastvit_t8", "image_size": 256}, SMALL_TEXT),
    "SigLIP": ("ViT-B-16-SigLIP", {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224}, SMALL_TEXT),
    "SigLIP 2": ("ViT-B-16-SigLIP2", {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224}, SMALL_TEXT),
    "PE": ("PE-Core-T-16-384", {"timm_model_name": "vit_tiny_patch16_384", "image_size": 384}, SMALL_TEXT),
    "CLIPA": ("ViT-L-14-CLIPA", SMALL_VIT, SMALL_TEXT),
    "worldwide": ("ViT-H-14-worldwide-quickgelu", SMALL_VIT, SMALL_TEXT),
    "CoCa": ("coca_ViT-B-32", SMALL_VIT, SMALL_TEXT),
    "RoBERTa": ("roberta-ViT-B-32", SMALL_VIT, {}),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> dict[str, str]:
    """Folders in place of repositories of the hub: small tokenizers and a text tower, each as its kind."""
    transformers = pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("hub")
    words = ["a", "man", "rides", "horse", "two", "dogs", "playing", "the", ",", "!", "moves", "times"]
    words += ["red", "green", "blue", "white", "ball", "box", "bird", "boat"]
    words += [str(number) for number in range(28)]
    special = ["<pad>", "</s>", "<unk>", "<s>"]

    def save(name: str, before: list[str], after: list[str], *, pad: str, **others) -> str:
        pieces = Pieces(models.WordLevel({word: i for i, word in enumerate(special + words)}, unk_token="<unk>"))
        pieces.normalizer = normalizers.Lowercase()
        pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        pieces.decoder = decoders.WordPiece()
        template = " ".join([*before, "$A", *after])
        ids = [(token, special.index(token)) for token in {*before, *after}]
        pieces.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
        loaded = transformers.PreTrainedTokenizerFast(
            tokenizer_object=pieces, pad_token=pad, eos_token="</s>", unk_token="<unk>", padding_side="right", **others
        )
        loaded.save_pretrained(root / name)
        return str(root / name)

    folders = {
        "siglip": save("siglip", [], ["</s>"], pad="</s>"),
        "gemma": save("gemma", [], ["</s>"], pad="<pad>"),
        "bert": save("bert", ["<s>"], ["</s>"], pad="<pad>", cls_token="<s>", sep_token="</s>"),
        "roberta": save("roberta", ["<s>"], ["</s>"], pad="<pad>", cls_token="<s>", sep_token="</s>"),
    }
    settings = {
        "vocab_size": 64,
        "hidden_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "pad_token_id": 0,
    }
    transformers.RobertaConfig(**settings, intermediate_size=64).save_pretrained(root / "roberta")
    return folders


@pytest.fixture
def architecture_of(hub):
    """Returns the description of a small model of a kind."""
    tokenizers = {
        "SigLIP": "siglip",
        "SigLIP 2": "gemma",
        "CLIPA": "bert",
        "worldwide": "roberta",
        "RoBERTa": "roberta",
    }

    def find(kind: str) -> dict:
        name, vision, text = KINDS[kind]
        found = find_architecture(name)
        found["embed_dim"] = 1024 if kind == "ResNet" else WIDTH
        found["vision_cfg"] |= vision
        found["text_cfg"] |= text
        if kind in tokenizers:
            found["text_cfg"] |= {"hf_tokenizer_name": hub[tokenizers[kind]], "vocab_size": 64, "eos_id": 1}
            found["text_cfg"].pop("hf_model_name", None)
        if kind == "RoBERTa":
            found["text_cfg"] = {"hf_model_name": hub["roberta"], "hf_tokenizer_name": hub["roberta"]}
            found["text_cfg"] |= {"hf_proj_type": "linear", "hf_pooler_type": "mean_pooler"}
        return found

    return find


def of_open_clip(tmp_path: Path, architecture: dict, kind: str):
    """Returns open_clip's own model, preprocessing and tokenizer, by its factory."""
    tag = next(iter(open_clip.list_pretrained_tags_by_model(KINDS[kind][0])), None)
    settings = open_clip.get_pretrained_cfg(KINDS[kind][0], tag) if tag else {}
    described = copy.deepcopy(architecture)
    described["text_cfg"]["hf_model_pretrained"] = False
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({
            "model_cfg": described,
            "preprocess_cfg": {k: v for k, v in settings.items() if k in ("mean", "std", "interpolation", "resize_mode")},
        })
    )  # fmt: skip
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}", pretrained_text=False)
    text = architecture["text_cfg"]
    name = text.get("hf_tokenizer_name")
    length = text.get("context_length", 77)
    tokenizer = (
        open_clip.tokenizer.HFTokenizer(name, context_length=length, **text.get("tokenizer_kwargs", {}))
        if name
        else open_clip.SimpleTokenizer(context_length=length)
    )
    return model.eval(), transform, tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_texts_and_frames_are_embedded_as_by_open_clip(kind, architecture_of, tmp_path):
    """Also texts that are cut to fewer words than the context, and in any batch."""
    architecture = architecture_of(kind)
    theirs, transform, their_tokenizer = of_open_clip(tmp_path, architecture, kind)
    frames = find_preprocessing(architecture, str(tmp_path))
    ours = Backbone(architecture, frames.size, frames.mean, frames.std).eval()
    state = {name: t for name, t in theirs.state_dict().items() if not name.startswith("text_decoder.")}
    ours.clip.load_state_dict(state)
    tokenizer = find_tokenizer(architecture)

    for max_words in (16, ours.num_positions):
        ids, mask = tokenizer(TEXTS, max_words=max_words)
        expected = their_tokenizer(TEXTS, context_length=max_words)
        assert torch.equal(ids[:, :max_words], expected)
        # As open_clip's users do: the tokens, padded to the context with its own padding.
        padded = expected.new_full((3, ours.num_positions), tokenizer.padding)
        padded[:, :max_words] = expected
        theirs_embedded = theirs.encode_text(padded, normalize=False) if kind == "CoCa" else theirs.encode_text(padded)
        embedded = last_token(ours.encode_tokens(ids, mask), mask)
        torch.testing.assert_close(embedded, theirs_embedded, rtol=1e-5, atol=1e-5)
        alone = ours.encode_tokens(*tokenizer.cut_padding(ids[:1], mask[:1]))[0, -1]
        torch.testing.assert_close(alone, theirs_embedded[0], rtol=1e-5, atol=1e-5)

    pixels = np.random.default_rng(0).integers(0, 256, (frames.size + 40, frames.size + 40, 3), np.uint8)
    if frames.resize == "squash":
        pixels = pixels[:, 20:]
    expected = transform(Image.fromarray(pixels))
    resized = resize_frames(pixels[None], Resizing(frames.size, frames.resize, frames.interpolation))
    found = ours.pixels(torch.from_numpy(resized).permute(0, 3, 1, 2)[None])[0, 0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    encoded = theirs.encode_image(expected[None], normalize=False)
    ours_encoded = ours.encode_frames(found[None, None], torch.ones(1, 1, dtype=torch.bool))[0]
    torch.testing.assert_close(ours_encoded, encoded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "interpolation"), [("squash", "bicubic"), ("squash", "bilinear"), ("shortest", "bilinear")]
)
@pytest.mark.parametrize("shape", [(48, 64), (101, 77), (32, 32), (1, 1), (20, 500)])
def test_frames_are_resized_as_by_open_clip(mode, interpolation, shape):
    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    settings = PreprocessCfg(size=32, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation=interpolation, resize_mode=mode)
    expected = image_transform_v2(settings, is_train=False)(Image.fromarray(frame)).permute(1, 2, 0).numpy() * 255
    difference = np.abs(resize_frames(frame[None], Resizing(32, mode, interpolation))[0] - expected)
    # Where a part is cropped, only the rest is computed, with PIL's 8-bit weights of another box.
    assert difference.max() <= (2 if mode == "shortest" and shape[0] != shape[1] else 1e-3)


@pytest.mark.slow
def test_all_models_whose_parts_are_installed_can_be_built():
    """On the meta device. The others need a configuration of transformers from the hub, and are not built here."""
    from_hub = {name for name in open_clip.list_models() if "hf_model_name" in find_architecture(name)["text_cfg"]}
    others = [name for name in open_clip.list_models() if name not in from_hub and not name.startswith("ViTamin-XL")]
    assert len(others) > 120
    for name in others:
        with torch.device("meta"):
            backbone = Backbone(find_architecture(name), find_preprocessing(name, None).size)
        assert backbone.vocabulary_size > 1000


@pytest.mark.parametrize("kind", ["CoCa", "RoBERTa"])
def test_a_tower_without_embeddings_of_tokens_compares_sentences_only(kind, architecture_of, load_tiny):
    from waver.training.build import build_student

    architecture = architecture_of(kind)
    overrides = {"model.backbone": architecture, "video.size": None, "text.max_words": 12, "model.temporal": "none"}
    with pytest.raises(
        BackboneError, match=r"similarity.kind = wti compares each word .* set similarity.kind to dp or xti"
    ):
        build_student(load_tiny(**overrides, **{"similarity.kind": "wti"}))
    student = build_student(load_tiny(**overrides, **{"similarity.kind": "dp"})).eval()
    assert isinstance(student, Student)
    ids, mask = find_tokenizer(architecture)(TEXTS, max_words=12)
    text = student.encode_text(ids, mask)
    assert text.values.shape == (3, 12, WIDTH)
    assert not torch.allclose(text.values[0, -1], text.values[1, -1])


def test_a_tokenizer_that_is_not_there_names_the_remedy(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match=r"tokenizer timm/ViT-B-16-SigLIP .* HF_HUB_OFFLINE is set: download"):
        find_tokenizer("ViT-B-16-SigLIP")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackboneError, match=r"needs transformers: pip install 'waver\[hf\]'"):
        find_tokenizer("ViT-B-16-SigLIP-256")


def test_a_tokenizer_beside_the_weights_is_taken(hub, tmp_path):
    tokenizer = find_tokenizer("ViT-B-16-SigLIP", hub["siglip"])
    assert tokenizer.vocabulary_size == 52
    assert tokenizer.strings([4, 1]) == ("a", "</s>")
    assert find_tokenizer("ViT-B-16-SigLIP", str(Path(hub["siglip"]) / "model.safetensors")).after == tokenizer.after


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["SigLIP", "CLIPA", "worldwide", "CoCa", "RoBERTa"])
def test_a_model_of_each_kind_is_trained_and_evaluated(kind, architecture_of, load_tiny, record_run, tmp_path):
    """With the vision tower of the small experiment, whose frames the clip store of the tests has."""
    architecture = architecture_of(kind)
    pooling = {key: value for key, value in architecture["vision_cfg"].items() if key.startswith("attentional")}
    architecture["vision_cfg"] = {
        "image_size": 16,
        "layers": 1,
        "width": 64,
        "head_width": 32,
        "patch_size": 8,
    } | pooling
    compares = "dp" if kind in ("CoCa", "RoBERTa") else "wti"
    config = load_tiny(**{"model.backbone": architecture, "similarity.kind": compares})
    training = record_run(tmp_path / "run", config)
    assert training.step == 6
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss/total"] for row in rows if "loss/total" in row]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    again = record_run(tmp_path / "again", config)
    assert again.rows == training.rows
    for name, tensor in training.student.state_dict().items():  # no dropout, which would depend on the workers
        assert torch.equal(tensor, again.student.state_dict()[name]), name
    assert all(0 <= row["t2v/R@1"] <= 100 for row in rows if "t2v/R@1" in row)
