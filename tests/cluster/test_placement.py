"""Placement of drivers, blocks and workers on a cluster whose nodes have different labels."""

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

def all_nodes(_):
    return parallel.gather_objects(here())

class Where:
    def __call__(self, block):
        return here()

train, decode = {"waver.role": "train"}, {"waver.role": "decode"}
resources = ResourcesConfig(node_labels=train, workers={"min": 1, "max": 4})
blocks = [pa.table({"number": [number]}) for number in range(8)]
with connect(), signal_actor() as actor:
    roles = {node["NodeID"]: node["Labels"].get("waver.role", "head") for node in ray.nodes()}
    where = {
        "driver": {here()},
        "blocks": set(map_blocks(Where, (), blocks, ActorPool(2, actor=WorkerResources(1.0, labels=decode)))),
        "workers": run_on_workers(all_nodes, None, resources, signals=actor),
    }
    print(json.dumps({what: sorted(roles[node] for node in nodes) for what, nodes in where.items()}))
"""


def test_blocks_and_workers_run_on_nodes_with_their_labels(cluster):
    running = cluster(nodes=2, labels=[{"waver.role": "train"}, {"waver.role": "decode"}])
    process = running.start("-c", _WHERE)
    stdout, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr
    assert json.loads(stdout) == {
        "driver": ["head"],
        "blocks": ["decode"],
        "workers": ["train"] * 2,  # not 4: only nodes with their label count
    }
