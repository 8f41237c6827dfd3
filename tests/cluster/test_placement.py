"""What runs on which node of a cluster whose nodes differ."""

import json

_WHERE = """
import json
import pyarrow as pa
import ray
from waver.training import parallel
from waver.config import ResourcesConfig
from waver.on_ray.cluster.blocks import ActorPool, map_blocks
from waver.on_ray.cluster.capacity import WorkerResources
from waver.on_ray.cluster.connection import connect
from waver.on_ray.cluster.signals import signal_actor
from waver.on_ray.cluster.workers import run_on_workers

def here(_=None):
    return ray.get_runtime_context().get_node_id()

def of_all(_):
    return parallel.gather_objects(here())

def run(**resources):
    asked = ResourcesConfig(node_labels=train, **resources)
    return run_on_workers(of_all, None, asked, signals=actor)

class Where:
    def __call__(self, block):
        return here()

train, decode = {"waver.role": "train"}, {"waver.role": "decode"}
blocks = [pa.table({"number": [number]}) for number in range(8)]
with connect(), signal_actor() as actor:
    roles = {node["NodeID"]: node["Labels"].get("waver.role", "head") for node in ray.nodes()}
    where = {
        "driver": {here()},
        "blocks": set(map_blocks(Where, (), blocks, ActorPool(2, actor=WorkerResources(1.0, labels=decode)))),
        "workers": run(workers=2),
        "a range": run(workers={"min": 1, "max": 4}),
    }
    print(json.dumps({what: sorted(roles[node] for node in nodes) for what, nodes in where.items()}))
"""


def test_labels_say_where_videos_are_decoded_and_where_is_trained(cluster):
    here = cluster(nodes=2, labels=[{"waver.role": "train"}, {"waver.role": "decode"}])
    process = here.start("-c", _WHERE)
    printed, said = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert json.loads(printed) == {
        "driver": ["head"],
        "blocks": ["decode"],
        "workers": ["train"] * 2,
        "a range": ["train"] * 2,  # of four, since only nodes with their label count
    }
