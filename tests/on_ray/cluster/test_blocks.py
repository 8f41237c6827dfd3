import pyarrow as pa
from logs import logged

from waver.on_ray.cluster.blocks import ActorPool, map_blocks


class Doubled:
    def __call__(self, block: pa.Table) -> int:
        return 2 * block["number"][0].as_py()


def test_blocks_wait_for_free_capacity_and_log_it(holding, monkeypatch):
    monkeypatch.setattr("waver.on_ray.cluster.capacity._NOTICE_AFTER_S", 0.5)
    blocks = [pa.table({"number": [number]}) for number in range(3)]
    with holding(6) as release, logged(lambda _: release()) as messages:
        assert sorted(map_blocks(Doubled, (), blocks, ActorPool(2))) == [0, 2, 4]
    assert messages == ["others use the cluster: 0 of 1 workers with 1 CPU each fit now: waiting for free capacity"]
