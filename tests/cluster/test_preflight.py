"""`waver doctor` on healthy clusters, and on one whose nodes have separate storages and versions."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image


@pytest.fixture
def experiment(tmp_path) -> Path:
    (tmp_path / "videos").mkdir()
    (tmp_path / "storage").mkdir()
    rows = []
    for number in range(8):
        frames = [Image.fromarray(np.full((32, 32, 3), 20 * number + i, np.uint8)) for i in range(10)]
        name = f"{number}.mp4"
        frames[0].save(tmp_path / "videos" / name, "GIF", save_all=True, append_images=frames[1:], duration=100)
        rows.append({"video": name, "caption": f"caption {number}", "split": "train" if number else "test"})
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "name": "preflight",
        "data": {"format": "table", "annotations": str(tmp_path / "captions.jsonl"), "videos": str(tmp_path / "videos")},
        "video": {"max_frames": 2, "size": 16},
        "model": {"weights": None, "temporal": "none", "backbone": {
            "embed_dim": 32, "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 16},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}}},
        "train": {"global_batch_size": 4},
        "resources": {"workers": 2, "loaders_per_worker": 0},
        "storage": {"path": str(tmp_path / "storage")},
    }  # fmt: skip
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "experiment.yaml"


def examine(cluster, experiment: Path) -> tuple[dict[str, list[dict]], str]:
    """Runs waver doctor; returns the findings by check, and its output."""
    doctor = cluster.start("-m", "waver", "doctor", experiment, "--address", cluster.address, env={"RAY_ADDRESS": ""})
    stdout, stderr = doctor.communicate(timeout=240)
    report = json.loads((experiment.parent / "storage/doctor/preflight.json").read_text())
    found: dict[str, list[dict]] = {}
    for finding in report["findings"]:
        found.setdefault(finding["check"], []).append(finding)
    return found, stdout + stderr


@pytest.fixture(scope="module")
def labelled(clusters):
    """A healthy cluster, whose two nodes have different labels."""
    with clusters() as start:
        yield start(nodes=2, labels=[{"waver.role": "train"}, {"waver.role": "decode"}])


def test_a_healthy_cluster_passes_all_checks(labelled, experiment):
    found, output = examine(labelled, experiment)
    levels = {name: [finding["level"] for finding in found.get(name, [])] for name in _CHECKS}
    assert levels == {name: ["ok"] for name in _CHECKS} | {"clocks": ["info"]}, output
    assert "the same on 3 nodes" in found["versions"][0]["found"]
    exchange = found["all-reduce"][0]
    assert "2 workers, gloo on cpu: the sum is right; 1.0 MiB in" in exchange["found"]
    assert all(0 < seconds < 10 for _, seconds in exchange["details"]["times"])
    print(exchange["found"])
    assert not (experiment.parent / "storage/.preflight").exists()


_CHECKS = ("cluster", "versions", "shared storage", "connections", "clocks", "all-reduce")


def test_only_nodes_with_the_required_labels_count_for_workers(labelled, experiment):
    settings = yaml.safe_load(experiment.read_text())
    settings["resources"] |= {"workers": 3, "node_labels": {"waver.role": "train"}}
    settings["train"]["global_batch_size"] = 6
    experiment.write_text(yaml.safe_dump(settings))
    found, output = examine(labelled, experiment)
    sentence = found["workers"][0]["found"]
    assert "3 workers with 1 CPU each are requested, and the cluster has capacity for 2" in sentence, output
    assert "of 3 nodes, 1 has waver.role=train, 2 CPUs" in sentence
    assert "not tried: 3 workers" in found["all-reduce"][0]["found"]


def _may_unshare() -> bool:
    return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not _may_unshare(), reason="only root may give a node a file system of its own")
def test_a_node_with_its_own_storage_and_another_numpy_is_reported(cluster, experiment, tmp_path):
    package = tmp_path / "site/numpy-0.0.1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.0.1\n")
    running = cluster(nodes=1)
    own_storage = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"', str(tmp_path / "storage")]
    running.start_node(wrapper=own_storage, python_path=[package.parent])
    found, output = examine(running, experiment)
    assert found["shared storage"][0]["level"] == "error", output
    assert "and this process do not see each other's files in" in found["shared storage"][0]["found"]
    # The node misses the probes of the others, and each of the others misses its probe.
    assert len(found["shared storage"][0]["details"]) == 4
    assert found["versions"][0]["level"] == "warning"
    assert "numpy differs" in found["versions"][0]["found"]
    assert "0.0.1 on" in found["versions"][0]["found"]
    assert "all-reduce" not in found
    print(output)
