"""The terms of the loss of a real batch, each against a direct computation with whole matrices."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from waver.config import ExperimentConfig
from waver.data.epochs import epoch_batches
from waver.model.embeddings import Embeddings
from waver.model.errors import BackboneError
from waver.runs.checkpoint import load_student, save_checkpoint
from waver.training.build import Training, build_training
from waver.training.objective import LOSS_TERMS
from waver.training.step import batch_terms, loss_weights, make_batch, train_epoch, train_step

CPU = torch.device("cpu")
ALL = {"loss.contrastive": 0.7, "loss.knowledge": 0.3, "loss.distill": 0.9, "loss.informed": 0.4, "loss.temperature": 2}
ALL |= {"loss.knowledge_temperature": 0.05, "loss.distill_warmup": 0}
RETRIEVED = [True, False]


@pytest.fixture
def batch(captions, store, knowledge, load_knowing):
    """Six pairs, and their phrases."""
    clips = ["v00", "v01", "v02", "v04", "v05", "v06"]
    rows = np.array([captions["clip_id"].to_pylist().index(clip) for clip in clips])
    return make_batch(captions, rows, store.read(clips), load_knowing(), 6, knowledge)


@pytest.fixture
def start(knowledge):
    """A run whose fusion changes frames so much that informed videos are clearly others."""

    def build(config: ExperimentConfig) -> Training:
        training = build_training(config, num_steps=60, device=CPU, phrases=knowledge.phrase_embeddings())
        if training.student.fusion is not None:
            with torch.no_grad():
                for name in ("value", "attended", "hidden", "output"):
                    training.student.fusion.get_submodule(name).weight.mul_(20)
        return training

    return build


def matrices(training: Training, batch) -> dict[str, torch.Tensor]:
    """Scaled similarities of all captions with all clips, and cosines of all phrases with all plain frames."""
    student = training.student
    text = student.encode_text(batch.token_ids, batch.token_mask)
    found, scale = {}, student.logit_scale.exp()
    for name, phrases in (("plain", None), ("informed", training.phrases[batch.phrase_ids])):
        if phrases is None or student.fusion is not None:
            found[name] = scale * student.similarity(
                text, student.encode_video(batch.frames, batch.frame_mask, phrases)
            )
    video = student.encode_video(batch.frames, batch.frame_mask)
    phrases = torch.empty(6, 6)
    for i in range(6):
        for j in range(6):
            frames = video.values[j, batch.frame_mask[j]]
            cosines = (
                F.normalize(training.phrases[batch.phrase_ids[i]], dim=-1) @ F.normalize(frames, dim=-1).T
            )  # K x frames
            weights = video.weights[j, batch.frame_mask[j]]
            phrases[i, j] = (cosines.amax(1).mean() + (weights * cosines.amax(0)).sum()) / 2
    return found | {"phrases": phrases}


def symmetric_cross_entropy(logits: torch.Tensor) -> torch.Tensor:
    own = torch.arange(len(logits))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean over rows of the sum of p (log p - log q)."""
    p, q = teacher.softmax(1), student.softmax(1)
    return (p * (p.log() - q.log())).sum(1).mean()


def decisions(logits: torch.Tensor) -> torch.Tensor:
    """Each pair on its own; the bias is in the logits."""
    sign = 2 * torch.eye(len(logits)) - 1
    return -(sign * logits).sigmoid().log().sum() / len(logits)


@pytest.mark.parametrize("temperature", [0.05, None])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("at_inference", RETRIEVED)
@pytest.mark.parametrize("kind", ["dp", "wti"])
@torch.no_grad()
def test_each_term_equals_its_formula(batch, start, load_knowing, kind, at_inference, loss, temperature):
    settings = {"knowledge.at_inference": at_inference, "similarity.kind": kind, "loss.kind": loss}
    config = load_knowing(**ALL | settings | {"loss.knowledge_temperature": temperature})
    training = start(config)
    terms = batch_terms(training, batch, config)[0]
    full = matrices(training, batch)
    plain, informed = full["plain"], full["informed"]

    phrases = [set(ids) for ids in batch.phrase_ids.tolist()]
    left_out = torch.tensor([[i != j and bool(phrases[i] & phrases[j]) for j in range(6)] for i in range(6)])
    assert 0 < left_out.sum() < 30
    factor = 1 / temperature if temperature else training.student.logit_scale.exp()
    contrast, bias = symmetric_cross_entropy, 0.0
    if loss == "sigmoid":
        contrast, bias = decisions, -4.0
        training.student.new_logit_bias.fill_(bias)
        terms = batch_terms(training, batch, config)[0]
    expected = {
        "contrastive": contrast((informed if at_inference else plain) + bias),
        "distill": 4 * (divergence(plain / 2, informed / 2) + divergence(plain.T / 2, informed.T / 2)) / 2,
        "knowledge": contrast((factor * full["phrases"] + bias).masked_fill(left_out, -torch.inf)),
    }
    if not at_inference:
        expected["informed"] = contrast(informed + bias)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, msg=lambda text, name=name: f"{name}: {text}")
    assert not torch.isclose(symmetric_cross_entropy(plain), symmetric_cross_entropy(informed), rtol=0.01)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_phrases_with_a_temperature_train_neither_scale_nor_bias(batch, start, load_knowing, loss):
    for temperature, trains in ((0.05, False), (None, True)):
        config = load_knowing(**ALL | {"loss.kind": loss, "loss.knowledge_temperature": temperature})
        training = start(config)
        if loss == "sigmoid":
            torch.nn.init.constant_(training.student.new_logit_bias, -4.0)
        batch_terms(training, batch, config)[0]["knowledge"].backward()
        shared = [p for p in (training.student.logit_scale, training.student.logit_bias) if p is not None]
        assert [p.grad is not None and bool(p.grad != 0) for p in shared] == [trains] * len(shared)
        assert training.student.backbone.clip.visual.proj.grad.norm() > 0


@pytest.fixture
def repeated(batch, captions, store, knowledge, load_knowing):
    """The six pairs of `batch`, of which the first, third and fourth have equal captions once they are cut."""
    texts = captions["caption"].to_pylist()
    clips = list(batch.clip_ids)
    rows = np.array([captions["clip_id"].to_pylist().index(clip) for clip in clips])
    long = "a b c d e f g h i j k l m"
    for row, text in zip(rows[[0, 2, 3]], (f"{long} one", f"{long.upper()}  two", long), strict=True):
        texts[row] = text
    changed = captions.set_column(captions.schema.get_field_index("caption"), "caption", [texts])
    return make_batch(changed, rows, store.read(clips), load_knowing(), 6, knowledge)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@torch.no_grad()
def test_shared_captions_are_left_out_of_the_contrast_and_of_nothing_else(repeated, start, load_knowing, loss):
    settings = ALL | {"loss.kind": loss, "knowledge.at_inference": False}
    training = start(load_knowing(**settings))
    if loss == "sigmoid":
        training.student.new_logit_bias.fill_(-4.0)
    negative, diagnostics = batch_terms(training, repeated, load_knowing(**settings))
    ignored, _ = batch_terms(training, repeated, load_knowing(**settings, **{"loss.shared_captions": "ignored"}))
    same = torch.zeros(6, 6, dtype=torch.bool)
    for i, j in ((0, 2), (0, 3), (2, 3)):
        same[i, j] = same[j, i] = True
    assert diagnostics["batch/shared_captions"].item() == pytest.approx(6 / 30)
    full = matrices(training, repeated)
    contrast, bias = (decisions, -4.0) if loss == "sigmoid" else (symmetric_cross_entropy, 0.0)
    phrases = [set(ids) for ids in repeated.phrase_ids.tolist()]
    left_out = same | torch.tensor([[i != j and bool(phrases[i] & phrases[j]) for j in range(6)] for i in range(6)])
    expected = {
        "contrastive": contrast((full["plain"] + bias).masked_fill(same, -torch.inf)),
        "informed": contrast((full["informed"] + bias).masked_fill(same, -torch.inf)),
        "knowledge": contrast((full["phrases"] / 0.05 + bias).masked_fill(left_out, -torch.inf)),
        "distill": negative["distill"],
    }
    for name, value in expected.items():
        torch.testing.assert_close(ignored[name], value, msg=lambda text, name=name: f"{name}: {text}")
    for name in ("contrastive", "informed"):
        assert ignored[name] < negative[name]


@torch.no_grad()
def test_diagnostics_of_the_distillation(batch, start, load_knowing):
    config = load_knowing(**ALL, **{"knowledge.at_inference": False})
    training = start(config)
    diagnostics = batch_terms(training, batch, config)[1]
    full = matrices(training, batch)
    for way in ("plain", "informed"):
        right = (full[way].argmax(1) == torch.arange(6)).float().mean()
        assert diagnostics[f"accuracy/{way}"].item() == pytest.approx(right.item())
    targets = torch.cat([(full["informed"] / 2).softmax(1), (full["informed"].T / 2).softmax(1)])
    candidates = (-(targets * targets.log()).sum(1)).exp().mean()
    assert 1 < candidates < 6
    assert diagnostics["distill/candidates"].item() == pytest.approx(candidates.item(), rel=1e-5)
    assert "accuracy/plain" not in batch_terms(training, batch, load_knowing(**ALL | {"loss.distill": 0}))[1]


def test_every_term_has_a_weight_in_the_configuration(load_tiny):
    assert load_tiny().loss.weights.keys() == LOSS_TERMS.keys()


@pytest.mark.parametrize(
    ("weights", "at_inference", "expected"),
    [
        ({}, True, {"contrastive"}),
        ({}, False, {"contrastive"}),
        ({"knowledge": 1}, True, {"contrastive", "knowledge"}),
        ({"knowledge": 1}, False, {"contrastive", "knowledge"}),
        ({"distill": 1}, True, {"contrastive", "distill"}),
        ({"distill": 1}, False, {"contrastive", "distill", "informed"}),
        ({"distill": 1, "contrastive": 0}, False, {"distill", "informed"}),
        ({"distill": 1, "knowledge": 1}, False, {"contrastive", "knowledge", "distill", "informed"}),
    ],
)
@torch.no_grad()
def test_a_term_without_weight_is_absent_and_the_others_are_as_they_were(
    batch, start, load_knowing, weights, at_inference, expected
):
    mode = {"knowledge.at_inference": at_inference, "loss.temperature": 2, "loss.knowledge_temperature": 0.05}
    config = load_knowing(**{f"loss.{name}": weight for name, weight in weights.items()}, **mode)
    everything = load_knowing(**(ALL | mode))
    training = start(everything)
    whole, terms = batch_terms(training, batch, everything)[0], batch_terms(training, batch, config)[0]
    assert terms.keys() == expected
    for name, term in terms.items():
        assert torch.equal(term, whole[name])


@torch.no_grad()
def test_plain_retrieval_without_distillation_never_sees_a_phrase(batch, start, load_knowing):
    config = load_knowing(**{"knowledge.at_inference": False})
    training = start(config)
    assert training.student.fusion is None
    before = batch_terms(training, batch, config)[0]
    training.phrases = torch.full_like(training.phrases, torch.nan)
    assert batch_terms(training, batch, config)[0] == before


@torch.no_grad()
def test_informed_retrieval_depends_on_the_phrases_and_plain_retrieval_does_not(batch, start, load_knowing):
    for at_inference in RETRIEVED:
        config = load_knowing(**ALL, **{"knowledge.at_inference": at_inference})
        training = start(config)
        before = batch_terms(training, batch, config)[0]
        training.phrases = training.phrases.flip(0)
        after = batch_terms(training, batch, config)[0]
        same = {name for name in before if torch.equal(before[name], after[name])}
        assert same == (set() if at_inference else {"contrastive"})


CONFIGURATIONS = [
    {"knowledge.at_inference": at_inference, "knowledge.top_k": top_k, "knowledge.fusion": fusion, **weights}
    for at_inference in RETRIEVED
    for top_k, fusion, weights in (
        (1, "published", {}),
        (3, "gated", {}),
        (3, "none", {}),
        (3, "none", {"loss.knowledge": 1}),
        (3, "published", {"loss.knowledge": 1}),
        (3, "gated", {"loss.distill": 1}),
        (1, "gated", {"loss.distill": 1, "loss.knowledge": 1}),
    )
] + [
    {"loss.kind": "sigmoid", "loss.knowledge": 1},
    {"loss.kind": "sigmoid", "loss.distill": 1, "knowledge.at_inference": False},
    {"knowledge.at_inference": False, "loss.contrastive": 0, "loss.distill": 1},
    {"knowledge.at_inference": False, "loss.contrastive": 0, "loss.distill": 1, "loss.knowledge": 1},
]


@pytest.mark.slow
@pytest.mark.parametrize("chosen", CONFIGURATIONS, ids=lambda c: " ".join(map(str, c.values())))
def test_every_parameter_gets_a_gradient(captions, store, knowledge, load_knowing, start, chosen):
    """DDP waits for the gradient of every parameter: one that gets none would stop a run."""
    clips = ["v00", "v01", "v02"]
    for kind, temporal in (("wti", "seqTransf"), ("dp", "none"), ("xclip", "seqTransf"), ("xti", "seqLSTM")):
        config = load_knowing(**chosen, **{"similarity.kind": kind, "model.temporal": temporal})
        training = start(config)
        batch = make_batch(captions, np.array([0, 1, 3]), store.read(clips), config, 3, knowledge)
        terms = batch_terms(training, batch, config)[0]
        sum(config.loss.weights[name] * term for name, term in terms.items()).backward()
        assert [name for name, p in training.student.named_parameters() if p.requires_grad and p.grad is None] == []


def test_logged_terms_sum_with_their_weights_to_the_total(batch, start, load_knowing):
    config = load_knowing(**ALL, **{"knowledge.at_inference": False})
    logs = train_step(start(config), batch, config)
    terms = {name.removeprefix("loss/"): value for name, value in logs.items() if name.startswith("loss/")}
    total = terms.pop("total")
    assert terms.keys() == {"contrastive", "knowledge", "distill", "informed"}
    assert all(value > 0 for value in terms.values())
    weights = {"contrastive": 0.7, "knowledge": 0.3, "distill": 0.9, "informed": 0.4}
    assert total == pytest.approx(sum(weights[name] * value for name, value in terms.items()))


def test_the_weight_of_the_distillation_rises_with_the_step(batch, start, load_knowing):
    config = load_knowing(**ALL | {"loss.distill_warmup": 0.1})  # of 60 steps
    training = start(config)
    totals = []
    for step, factor in ((0, 1 / 6), (2, 0.5), (5, 1.0), (40, 1.0)):
        training.step = step  # as in a run that resumes there
        assert loss_weights(training, config) == config.loss.weights | {"distill": pytest.approx(0.9 * factor)}
        terms = batch_terms(training, batch, config)[0]
        logs = train_step(training, batch, config)
        assert logs["distill/weight"] == pytest.approx(0.9 * factor)
        expected = sum(config.loss.weights[name] * term for name, term in terms.items() if name != "distill")
        assert logs["loss/total"] == pytest.approx((expected + 0.9 * factor * terms["distill"]).item(), rel=1e-5)
        totals.append(logs["loss/total"])
    training.step = 0
    assert loss_weights(training, load_knowing(**ALL))["distill"] == 0.9


@pytest.fixture
def batches(captions, store, knowledge, load_knowing):
    names = captions["clip_id"].to_pylist()
    rows = np.array([row for row, clip in enumerate(names) if clip in store.ok_clip_ids() and clip < "v14"])
    _, clips = np.unique(captions["clip_id"].take(rows).to_numpy(), return_inverse=True)
    config = load_knowing()

    def plan(epoch: int):
        for chosen in epoch_batches(clips, epoch=epoch, seed=0, global_batch_size=6, captions_per_clip=1):
            share = rows[chosen]
            frames = store.read([names[row] for row in share])
            yield make_batch(captions, share, frames, config, len(share), knowledge)

    return plan


@pytest.mark.slow
@pytest.mark.parametrize("at_inference", RETRIEVED)
def test_training_lowers_every_term(batches, knowledge, load_knowing, at_inference):
    """All but `distill`, whose teacher learns too and is not sure of anything at the start."""
    ones = {f"loss.{name}": 1 for name in ("contrastive", "knowledge", "distill")}
    fast = {"train.warmup_fraction": 0.0, "train.lr": 3e-3}
    config = load_knowing(**ones, **fast, **{"knowledge.at_inference": at_inference})
    phrases = knowledge.phrase_embeddings()
    training = build_training(config, num_steps=60, device=CPU, phrases=phrases)
    logs = [log for epoch in range(20) for log in train_epoch(training, batches(epoch), config)]
    names = {"total", "contrastive"} | (set() if at_inference else {"informed"})
    for name in names:
        values = [log[f"loss/{name}"] for log in logs]
        assert np.mean(values[-3:]) < 0.6 * np.mean(values[:3]), name
    knows = [log["loss/knowledge"] for log in logs]
    assert np.mean(knows[-3:]) < np.mean(knows[:3])
    assert torch.equal(training.phrases, phrases)


def test_the_phrases_are_a_table_beside_the_student(batch, start, load_knowing, tmp_path):
    """They are no parameter, no buffer, and in no checkpoint; nor is the teacher that made them."""
    config = load_knowing(**ALL, **{"knowledge.at_inference": False})
    training = start(config)
    before, weights = training.phrases.clone(), copy.deepcopy(training.student.state_dict())
    for _ in range(3):
        train_step(training, batch, config)
    assert torch.equal(training.phrases, before)
    assert not training.phrases.requires_grad
    assert not torch.equal(training.student.state_dict()["fusion.value.weight"], weights["fusion.value.weight"])

    save_checkpoint(tmp_path, training, config)
    saved = load_file(tmp_path / "model.safetensors")
    num_phrases = len(before)
    assert [name for name, tensor in saved.items() if tensor.ndim and len(tensor) == num_phrases] == []
    assert [name for name, tensor in training.student.named_buffers() if num_phrases in tensor.shape] == []
    assert [name for name in saved if name.endswith("token_embedding.weight")] == [
        "backbone.clip.token_embedding.weight"
    ]


def test_the_sigmoid_loss_learns_a_bias_that_checkpoints_keep(batch, start, load_knowing, tmp_path):
    config = load_knowing(**ALL, **{"loss.kind": "sigmoid", "train.warmup_fraction": 0})
    training = start(config)
    logs = train_step(training, batch, config)
    assert logs["logit_bias"] == -10
    assert training.student.logit_bias.item() not in (-10, 0)
    save_checkpoint(tmp_path, training, config)
    assert torch.equal(load_student(tmp_path, config).logit_bias, training.student.logit_bias)
    assert "logit_bias" not in train_step(start(load_knowing()), batch, load_knowing())


def test_the_bias_of_a_backbone_that_has_one_is_trained(load_tiny, tiny_config):
    backbone = tiny_config.model.backbone | {"init_logit_bias": -5}
    training = build_training(
        load_tiny(**{"model.backbone": backbone, "loss.kind": "sigmoid"}), num_steps=1, device=CPU
    )
    assert training.student.logit_bias is training.student.backbone.clip.logit_bias
    assert training.student.logit_bias.item() == -5
    optimized = [(p, group["weight_decay"]) for group in training.optimizer.param_groups for p in group["params"]]
    assert [decay for p, decay in optimized if p is training.student.logit_bias] == [0]
    softmax = build_training(load_tiny(**{"model.backbone": backbone}), num_steps=1, device=CPU)
    assert softmax.student.logit_bias is None
    assert not softmax.student.backbone.clip.logit_bias.requires_grad


def test_only_the_softmax_loss_bounds_the_scale(batch, start, load_knowing):
    scales = {}
    for kind in ("softmax", "sigmoid"):
        config = load_knowing(**{"loss.kind": kind})
        training = start(config)
        with torch.no_grad():
            training.student.logit_scale.fill_(5.0)
        train_step(training, batch, config)
        scales[kind] = training.student.logit_scale.exp().item()
    assert scales["softmax"] == pytest.approx(100)
    assert scales["sigmoid"] > 140


def test_phrases_of_another_width_are_an_error(load_knowing):
    with pytest.raises(
        BackboneError, match=r"the teacher's phrases have width 16, model.backbone 32: run `waver match CONFIG` again"
    ):
        build_training(load_knowing(), num_steps=1, device=CPU, phrases=torch.zeros(12, 16))


def test_what_the_objective_embeds_are_embeddings(batch, start, load_knowing):
    """Frames pass the backbone once for both ways; each way gives what it gives alone."""
    training = start(load_knowing())
    phrases = training.phrases[batch.phrase_ids]
    both = training.forward(batch, phrases, plain=True, informed=True)
    for way, alone in (
        (both.plain, training.student.encode_video(batch.frames, batch.frame_mask)),
        (both.informed, training.student.encode_video(batch.frames, batch.frame_mask, phrases)),
    ):
        assert isinstance(way, Embeddings)
        torch.testing.assert_close(way.values, alone.values)
        torch.testing.assert_close(way.weights, alone.weights)
    assert training.forward(batch, phrases, plain=False, informed=True).plain is None
    assert training.forward(batch, phrases, plain=True, informed=False).informed is None


@torch.no_grad()
def test_dropout_changes_with_seed_and_step_and_not_by_itself(batch, start, load_knowing):
    config = load_knowing(**{"knowledge.dropout": 0.5})
    training = start(config)
    whole = batch_terms(training, batch, load_knowing())[0]["contrastive"]
    values = {}
    for name, step, seed in (("first", 0, 0), ("again", 0, 0), ("next", 1, 0), ("seed", 0, 1)):
        training.step = step
        values[name] = batch_terms(training, batch, config.model_copy(update={"seed": seed}))[0]["contrastive"].item()
    assert values.pop("again") == values["first"]
    assert len({whole.item(), *values.values()}) == 4


def test_parts_of_a_batch_know_their_place(batch):
    assert [part.first for part in (batch, batch[:2], batch[2:], batch[1:][3:5], batch[-1:])] == [0, 0, 2, 4, 5]


@torch.no_grad()
def test_dropout_is_not_in_evaluation(batch, start, load_knowing):
    config = load_knowing(**{"knowledge.dropout": 0.5})
    training = start(config)
    phrases = training.phrases[batch.phrase_ids]
    student = training.student.train()
    whole = student.encode_video(batch.frames, batch.frame_mask, phrases)
    student.fusion.dropout = 0.0
    without = student.eval().encode_video(batch.frames, batch.frame_mask, phrases)
    torch.testing.assert_close(without.values, whole.values, rtol=1e-4, atol=1e-4)
