"""Synthetic films have the structure that their module promises."""

import numpy as np
import pytest
import torch

from waver.benchmarks.films import WINDOWS_PER_FILM, World
from waver.evaluation.token_wise import token_wise

WORLD = World(width=128, num_frames=6)


@pytest.fixture(scope="module")
def windows() -> np.ndarray:
    return np.concatenate(list(WORLD.films(10 * WINDOWS_PER_FILM)))


def test_films_come_from_the_seed_whatever_their_number(windows):
    assert windows.shape == (2500, 6, 128)
    np.testing.assert_array_equal(np.concatenate(list(WORLD.films(300))), windows[:300])
    other = World(128, 6, seed=1)
    assert not np.allclose(next(other.films(1)), windows[:1], atol=0.01)


def test_frames_are_alike_in_all_films_and_more_so_in_a_window(windows):
    np.testing.assert_allclose(np.linalg.norm(windows, axis=2), 1, atol=1e-5)
    of_films = windows[::WINDOWS_PER_FILM, 0]
    between = (of_films @ of_films.T)[~np.eye(10, dtype=bool)].mean()
    within = np.einsum("wfd,wgd->wfg", windows, windows).mean()
    assert 0.4 < between < 0.65 < 0.8 < within < 0.95


def test_neighbouring_windows_share_half_of_their_frames(windows):
    np.testing.assert_array_equal(windows[0, 3:], windows[1, :3])
    np.testing.assert_array_equal(windows[248, 3:], windows[249, :3])
    assert not np.allclose(windows[249, 3:], windows[250, :3], atol=0.01), "another film"


def test_a_caption_finds_the_film_that_it_describes_and_few_words_have_most_weight(windows):
    text, video = WORLD.captions(40, len(windows)), WORLD.weigh(torch.from_numpy(windows))
    described = np.sort(np.random.default_rng([WORLD.seed, 1]).integers(len(windows), size=40))
    found = token_wise(text, video).argmax(dim=1).numpy()
    assert (found // WINDOWS_PER_FILM == described // WINDOWS_PER_FILM).mean() > 0.8
    assert ((text.mask.sum(dim=1) >= 8) & (text.mask.sum(dim=1) < 18)).all()
    torch.testing.assert_close(text.weights.sum(dim=1), torch.ones(40))
    assert text.weights.sort(descending=True).values[:, :3].sum(dim=1).mean() > 0.6
    torch.testing.assert_close(video.weights.sum(dim=1), torch.ones(len(video)))
