"""Our model with the reference implementation's weights gives the reference implementation's numbers.

Set WAVER_PARITY to a folder with other figures of the same form to check those. Values behind a mask are unspecified (ours
are not computed) and are not compared.
"""

import json

import pytest
import torch
from field_cases import CASES, FIGURES, assert_close, read_case
from safetensors.torch import load_file

from waver.evaluation.metrics import retrieval_metrics
from waver.evaluation.ranking import rank_similarity
from waver.model.backbone import Backbone
from waver.model.interaction import last_token
from waver.model.pretrained.field_checkpoints import PREFIXES, read_field_checkpoint
from waver.model.student import Student, StudentParts
from waver.model.tokenizer import find_tokenizer
from waver.training.losses import contrastive

TEMPORAL = {"none": "none", "seqtransf": "seqTransf", "seqlstm": "seqLSTM"}


def build(case: str) -> Student:
    interaction, temporal = case.removesuffix("_padded").split("_")
    kind, num_layers = interaction.rstrip("123"), int(interaction[-1]) if interaction[-1].isdigit() else 2
    found = read_field_checkpoint(read_case(case), similarity=kind)
    assert (found.temporal, found.similarity) == (TEMPORAL[temporal], kind)
    assert kind != "wti" or found.wti_layers == num_layers
    student = Student(
        Backbone(found.backbone, found.image_size),
        StudentParts(
            temporal=found.temporal,
            temporal_layers=found.temporal_layers,
            similarity=found.similarity,
            wti_layers=found.wti_layers,
            fusion="published" if found.fusion else "none",
        ),
    )
    student.load_state_dict({name: value.float() for name, value in found.state.items()})
    return student.eval()


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
    for theirs, ours in PREFIXES.items():
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
