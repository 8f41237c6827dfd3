"""Loss, gradient and metrics do not depend on the number of workers: real processes, one, two and three of them."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

pytestmark = pytest.mark.slow
WORKER = Path(__file__).with_name("worker.py")
SIZES = (1, 2, 3)
STEPS = [
    *("wti seqTransf", "dp", "ti seqLSTM", "xclip", "xti"),
    *("informed", "gated", "dropout", "distilled", "sigmoid", "shared captions", "soft targets", "adapters", "frozen"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory, captions, store, knowledge, teacher_weights, tiny_config) -> dict[tuple[int, int], dict]:
    """(workers, rank) -> what that worker computed."""
    folder = tmp_path_factory.mktemp("workers")
    raw = tiny_config.model_dump(mode="json")
    raw["model"]["weights"], raw["knowledge"]["num_matches"] = str(teacher_weights), 6
    raw["knowledge"]["fusion"] = "published"
    (folder / "experiment.yaml").write_text(yaml.safe_dump(raw))
    (folder / "experiment.pickle").write_bytes(pickle.dumps((captions, store, knowledge)))
    # Each process takes part in every group it has a rank in: to start one costs more than all that it computes.
    processes = [subprocess.Popen([sys.executable, str(WORKER), str(rank), str(folder)]) for rank in range(max(SIZES))]
    assert [process.wait(timeout=240) for process in processes] == [0] * len(processes)
    return {
        (world_size, rank): torch.load(folder / f"results-{world_size}-{rank}.pt", weights_only=False)
        for world_size in SIZES
        for rank in range(world_size)
    }


@pytest.mark.parametrize(
    ("world_size", "how"), [(2, ""), (3, ""), (1, " by parts"), (2, " by parts"), (3, " by parts")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("step", STEPS)
def test_same_loss_and_gradient(results, step, dtype, world_size, how):
    tolerance = 1e-6 if dtype == torch.float64 else 1e-4
    loss, gradients = results[1, 0][step, dtype]
    for rank in range(world_size):
        their_loss, their_gradients = results[world_size, rank][step + how, dtype]
        assert abs(their_loss - loss) <= tolerance * abs(loss)
        assert gradients.keys() == their_gradients.keys()
        whole = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        for name, gradient in gradients.items():
            difference = (their_gradients[name] - gradient).norm()
            # Some biases have no effect (a softmax does not see them): their gradient is rounding alone.
            assert difference <= tolerance * max(gradient.norm(), 0.01 * whole), name


def test_shared_captions_of_different_workers_are_left_out(results):
    assert results[1, 0]["shared captions", torch.float64][0] < results[1, 0]["informed", torch.float64][0]


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("split", ["test", "validation"])
@pytest.mark.parametrize("step", ["wti seqTransf", "informed"])
def test_identical_metrics(results, step, split, world_size):
    alone = results[1, 0][step, split]
    for rank in range(world_size):
        together = results[world_size, rank][step, split]
        assert together.metrics == alone.metrics
        assert torch.equal(together.ranks.t2v, alone.ranks.t2v)
        assert torch.equal(together.ranks.v2t, alone.ranks.v2t)
        assert torch.equal(together.top.clips, alone.top.clips)
        assert torch.equal(together.top.scores, alone.top.scores)
        assert (together.gallery_size, together.num_queries) == (alone.gallery_size, alone.num_queries)


@pytest.mark.parametrize("world_size", [2, 3])
def test_identical_figures_beside(results, world_size):
    alone = results[1, 0]["rescored"].variants
    assert set(alone) == {"excused", "dsl", "qb_norm"}
    for rank in range(world_size):
        assert results[world_size, rank]["rescored"].variants == alone
