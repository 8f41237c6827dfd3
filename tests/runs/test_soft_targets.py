"""What a run learns from the frozen teacher, from stored embeddings to batches."""

import shutil

import pytest
import torch
import torch.nn.functional as F

from waver.knowledge.errors import KnowledgeError
from waver.knowledge.soft_targets import effective_number
from waver.runs.inputs import open_knowledge
from waver.runs.soft_targets import build_spaces, embed_for_teacher, is_embedded_for_teacher, open_teacher
from waver.training.build import build_backbone, build_tokenizer
from waver.training.plan import training_rows
from waver.training.step import make_batch

TERMS = {"loss.phrases_video": 1, "loss.phrases_text": 1, "loss.keep": 1, "knowledge.effective_phrases": 4}


@pytest.fixture
def opened(load_knowing, knowledge, captions, store):
    """Returns an experiment with soft targets, its rows, knowledge and what frozen backbones made."""

    def make(**overrides):
        config = load_knowing(**(TERMS | overrides))
        shutil.copytree(knowledge.path, config.knowledge_store, dirs_exist_ok=True)
        rows = training_rows(captions, store)
        paths = embed_for_teacher(config, captions, store, rows, progress=False)
        return config, rows, open_knowledge(config, captions, store, ["train"]), paths

    return make


def test_what_the_teacher_reads_is_embedded_once(opened, captions, store):
    config, rows, _, paths = opened()
    assert is_embedded_for_teacher(config, captions, store, rows)
    texts, teacher = captions["caption"].take(rows[:3]).to_pylist(), open_teacher(config, paths, store)
    backbone = build_backbone(config, config.model.weights).eval()
    ids, mask = build_tokenizer(config)(texts, max_words=config.text.max_words, prompt=config.text.prompt)
    with torch.no_grad():
        words = backbone.encode_tokens(ids, mask)
    ends = F.normalize(words[torch.arange(3), mask.sum(1) - 1], dim=-1)
    torch.testing.assert_close(teacher.captions(texts), ends, atol=1e-3, rtol=0)  # stored in half precision


def test_a_control_exchanges_what_phrases_describe_and_not_what_is_kept(opened, captions, store):
    """`keep` compares captions with their own clips; under a control it would otherwise teach wrong clips."""
    made = {}
    for kind in ("none", "shuffled"):
        config, rows, known, paths = opened(**{"knowledge.control": kind})
        teacher = open_teacher(config, paths, store)
        clips = captions["clip_id"].take(rows[:4]).to_pylist()
        made[kind] = make_batch(captions, rows[:4], store.read(clips), config, 4, known, teacher=teacher)
    assert made["none"].described_clips is None
    assert torch.equal(made["shuffled"].teacher_clips, made["none"].teacher_clips)
    assert torch.equal(made["shuffled"].teacher_clips, teacher.clips(clips))
    others = [known.control.phrases_of[clip] for clip in clips]
    assert torch.equal(made["shuffled"].described_clips, teacher.clips(others))
    assert torch.equal(made["shuffled"][1:3].described_clips, teacher.clips(others[1:3]))
    assert not torch.equal(made["shuffled"].described_clips, made["shuffled"].teacher_clips)


def test_temperatures_give_the_effective_number_of_phrases(opened, captions, store):
    config, rows, known, paths = opened()
    spaces, teacher = build_spaces(config, captions, rows, known, paths, store), open_teacher(config, paths, store)
    clips = sorted(set(captions["clip_id"].take(rows).to_pylist()))
    batch = [clips[round(place * (len(clips) - 1) / 5)] for place in range(6)]
    pool = known.phrase_ids(batch, config.knowledge.top_k).unique()
    number = effective_number(spaces.teacher.of_clips(teacher.clips(clips), pool)).mean()
    assert float(number) == pytest.approx(4, abs=0.01)
    again = build_spaces(config, captions, rows, known, paths, store)
    assert again.teacher.clip_temperature == spaces.teacher.clip_temperature, "a resumed run finds the same"


def test_more_effective_phrases_than_a_batch_has_are_an_error(opened, captions, store):
    config, rows, known, paths = opened(**{"knowledge.effective_phrases": 12})
    with pytest.raises(KnowledgeError, match=r"knowledge\.effective_phrases = 12.*only \d+ different phrases"):
        build_spaces(config, captions, rows, known, paths, store)
