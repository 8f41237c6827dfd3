import numpy as np
import pytest

from waver.model.interaction import INTERACTIONS
from waver.search import load, open_index
from waver.search.serving.explanation import _SENTENCES, explain
from waver.training.build import build_tokenizer

QUERY = "a red ball moves"


def explain_first(folder):
    found = open_index(folder)
    text = found.model.embed_texts([QUERY])
    number = found.search(QUERY, top=1)[0].window
    explained = explain(found.model, build_tokenizer(found.model.config), QUERY, text, found.embeddings([number]))
    return explained, found.scores(text)[0, number].item()


def test_the_parts_of_a_token_wise_score_give_the_score(index):
    explained, score = explain_first(index)
    assert explained.words == ["<start>", "a", "red", "ball", "moves", "<end>"]
    cosines = np.array(explained.cosines)
    assert cosines.shape == (6, len(explained.frame_weights))
    assert np.abs(cosines).max() <= 1 + 1e-6
    assert sum(explained.word_weights) == pytest.approx(1, abs=1e-5)
    by_words = cosines.max(1) @ explained.word_weights
    by_frames = cosines.max(0) @ explained.frame_weights
    assert (by_words + by_frames) / 2 == pytest.approx(score, abs=1e-5)
    assert explained.similarity == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("kind", ["dp", "xti"])
def test_scores_without_shares_of_words_are_not_drawn(kind, make_index, make_checkpoint):
    explained, score = explain_first(make_index(make_checkpoint(kind, kind, 5)))
    assert explained.words is explained.cosines is explained.word_weights is explained.frame_weights is None
    assert explained.similarity == pytest.approx(score, abs=1e-5)
    assert f"(interaction {kind})" in explained.sentence


def test_uniform_weights_are_said_not_drawn(make_checkpoint):
    model = load(make_checkpoint("ti", "uniform", 6))
    text = model.embed_texts([QUERY])
    video = model.embed_frames(np.zeros((1, 3, 16, 16, 3), np.uint8), np.array([2], np.int32))
    explained = explain(model, build_tokenizer(model.config), QUERY, text, video)
    assert np.shape(explained.cosines) == (6, 2)
    assert explained.word_weights is None
    assert "All words count the same" in explained.sentence


def test_every_interaction_has_its_sentence():
    assert _SENTENCES.keys() == INTERACTIONS.keys()
