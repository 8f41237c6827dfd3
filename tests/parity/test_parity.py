"""Our model with the reference implementation's weights gives the reference implementation's numbers.

Set WAVER_PARITY to a folder with other figures of the same form to check those. Values behind a mask are unspecified (ours
are not computed) and are not compared.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from waver.evaluation.metrics import retrieval_metrics
from waver.evaluation.ranking import rank_similarity
from waver.model.interaction import last_token
from waver.model.student import Student
from waver.model.tokenizer import find_tokenizer
from waver.model.weights import load_backbone
from waver.training.losses import contrastive

FIGURES = Path(os.environ.get("WAVER_PARITY", Path(__file__).parent))
CASES = sorted(
    path.stem
    for path in FIGURES.glob("*.safetensors")
    if path.stem.split("_")[0].rstrip("123") in ("dp", "ti", "wti", "xti") and not path.stem.endswith(".weights")
)
ARCHITECTURE = {
    "embed_dim": 128,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 128, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 600, "width": 128, "heads": 2, "layers": 4},
}
FUSION_PREFIX = "co_connection_transformer_model_block.0."
FUSION = {
    "query": "biattention.query1",
    "key": "biattention.key2",
    "value": "biattention.value2",
    "attended": "biOutput.dense1",
    "attended_norm": "biOutput.LayerNorm1",
    "hidden": "v_intermediate.dense",
    "output": "v_output.dense",
    "output_norm": "v_output.LayerNorm",
}
TEMPORAL = {"none": "none", "seqtransf": "seqTransf", "seqlstm": "seqLSTM"}


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs.to(ours.dtype).reshape(ours.shape), rtol=1e-4, atol=1e-4)


def build(case: str) -> Student:
    interaction, temporal = case.removesuffix("_padded").split("_")
    kind, num_layers = interaction.rstrip("123"), int(interaction[-1]) if interaction[-1].isdigit() else 2
    backbone = load_backbone(ARCHITECTURE, str(FIGURES / "clip.weights.safetensors"), image_size=64)
    student = Student(
        backbone, temporal=TEMPORAL[temporal], temporal_layers=4, similarity=kind, wti_layers=num_layers, fusion=True
    ).eval()
    weights = load_file(FIGURES / f"{case.removesuffix('_padded')}.weights.safetensors")

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {name[len(prefix) :]: value.float() for name, value in weights.items() if name.startswith(prefix)}

    # The other half of the reference's block updates the phrases, which nothing uses.
    for ours, theirs in FUSION.items():
        student.fusion.get_submodule(ours).load_state_dict(part(f"{FUSION_PREFIX}{theirs}."))
    if kind == "wti":
        for head, prefix in ((student.text_weights, "text_weight_fc."), (student.video_weights, "video_weight_fc.")):
            state = part(prefix)
            head.load_state_dict({f"0.{name}": v for name, v in state.items()} if num_layers == 1 else state)
    if temporal == "seqlstm":
        student.temporal.lstm.load_state_dict(part("lstm_visual."))
    if kind == "xti":
        cross = student.cross
        cross.transformer.load_state_dict(part("cross.transformer."))
        cross.pool_norm.load_state_dict(part("cross.pooler.ln_pool."))
        cross.pool.load_state_dict(part("cross.pooler.dense."))
        cross.score.load_state_dict(part("similarity_dense."))
        with torch.no_grad():
            cross.position_embedding.copy_(weights["cross.embeddings.position_embeddings.weight"])
    return student


@pytest.fixture(params=CASES)
def case(request):
    """(student, inputs, expected); cases without aggregator were computed on the padded inputs, too."""
    padded = request.param.endswith("_padded") or request.param.endswith("_none")
    inputs = load_file(FIGURES / f"inputs_{'padded' if padded else 'full'}.safetensors")
    return build(request.param), inputs, load_file(FIGURES / f"{request.param}.safetensors")


def test_there_are_figures():
    assert CASES
    assert "wti2_seqtransf" in CASES


@torch.no_grad()
def test_towers(case):
    student, inputs, expected = case
    text = student.encode_text(inputs["text_ids"], inputs["text_mask"].bool())
    assert_close(text.values, expected["text_tokens"])
    mask = inputs["video_mask"].bool()
    frames = student.backbone.encode_frames(inputs["video"].float(), mask)
    assert_close(frames[mask], expected["frames"][mask])
    video = student.aggregate(frames, mask)
    assert_close(video.values[mask], expected["video_aggregated_no_fusion"][mask])
    if "similarity_no_fusion" in expected:
        assert_close(student.similarity(text, video), expected["similarity_no_fusion"])


@torch.no_grad()
def test_teacher(case):
    student, inputs, expected = case
    mask = inputs["phrase_mask"].bool()
    ours = last_token(student.backbone.encode_tokens(inputs["phrase_ids"], mask), mask)
    assert_close(ours[:, None], expected["knowledge"])


@torch.no_grad()
def test_fusion(case):
    student, inputs, expected = case
    mask = inputs["video_mask"].bool()
    one = student.aggregate(student.fusion(expected["frames"], expected["knowledge"]), mask)
    assert_close(one.values[mask], expected["video_fused_aggregated"][mask])
    three = student.fusion(expected["frames"], inputs["knowledge_k3"])
    assert_close(three[mask], expected["frames_fused_k3"][mask])
    assert_close(student.aggregate(three, mask).values[mask], expected["video_fused_k3_aggregated"][mask])


def test_similarity_loss_and_gradient(case, request):
    """All of it: pixels and words in, loss and the norm of its gradient with respect to every parameter out."""
    student, inputs, expected = case
    text = student.encode_text(inputs["text_ids"], inputs["text_mask"].bool())
    mask = inputs["video_mask"].bool()
    frames = student.backbone.encode_frames(inputs["video"].float(), mask)
    video = student.aggregate(student.fusion(frames, expected["knowledge"]), mask)
    similarity = student.similarity(text, video)
    assert_close(similarity, expected["similarity_t2v"])
    assert_close(similarity.T, expected["similarity_v2t"])
    loss = contrastive(similarity, similarity.T, student.logit_scale.exp(), offset=0)
    assert_close(loss, expected["loss"])

    loss.backward()
    name = request.node.callspec.params["case"]
    theirs = json.loads((FIGURES / "gradient_norms.json").read_text())[name]
    ours = {their_name(name): p.grad.norm().item() for name, p in student.named_parameters() if p.grad is not None}
    if name.startswith("wti1"):  # a head of one layer has no numbers there
        ours = {name.replace("weight_fc.0.", "weight_fc."): norm for name, norm in ours.items()}
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)


def their_name(name: str) -> str:
    """The reference's name of a parameter."""
    for ours, theirs in {
        "backbone.clip.": "clip.",
        "temporal.position_embedding": "frame_position_embeddings.weight",
        "temporal.transformer.": "transformerClip.",
        "temporal.lstm.": "lstm_visual.",
        "text_weights.": "text_weight_fc.",
        "video_weights.": "video_weight_fc.",
        **{f"fusion.{ours}.": f"{FUSION_PREFIX}{theirs}." for ours, theirs in FUSION.items()},
        "cross.position_embedding": "cross.embeddings.position_embeddings.weight",
        "cross.pool_norm.": "cross.pooler.ln_pool.",
        "cross.pool.": "cross.pooler.dense.",
        "cross.score.": "similarity_dense.",
    }.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def test_metrics():
    matrices, expected = load_file(FIGURES / "metrics.safetensors"), json.loads((FIGURES / "metrics.json").read_text())
    names = {"R@1": "R1", "R@5": "R5", "R@10": "R10", "MdR": "MedianR", "MnR": "MeanR"}
    clip_of_text = {"single": torch.arange(len(matrices["single"])), "multi": matrices["multi_video_of_caption"]}
    for name in ("single", "multi"):
        for chunk_size in (7, 1000):
            ours = retrieval_metrics(rank_similarity(matrices[name], clip_of_text[name], chunk_size=chunk_size))
            for direction in ("t2v", "v2t"):
                for our_name, their_name in names.items():
                    theirs = expected[f"{name}_{direction}"][their_name]
                    assert ours[f"{direction}/{our_name}"] == pytest.approx(theirs, rel=1e-6)


def test_tokens():
    for row in json.loads((FIGURES / "tokens.json").read_text()):
        prompt = "This is a video about {}." if row["prompt"] else None
        ids, mask = find_tokenizer("ViT-B-32")([row["caption"]], max_words=32, prompt=prompt)
        assert ids[0].tolist() == row["ids"]
        assert mask.sum().item() == row["length"]
