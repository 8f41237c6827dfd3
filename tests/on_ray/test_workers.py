import pytest

from waver.config import ResourcesConfig
from waver.on_ray.workers import WorkerError, run_on_workers


def fail(argument: str) -> None:
    raise ValueError(f"the user should change {argument}")


def test_a_mistake_of_the_user_is_a_sentence_and_is_not_tried_again(tmp_path):
    with pytest.raises(WorkerError, match=r"^the user should change this$"):
        run_on_workers(fail, "this", ResourcesConfig(), name="fails", storage=tmp_path)
    assert not list(tmp_path.glob(".failure*"))
