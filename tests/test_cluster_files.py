"""Files that start clusters match the schema of Ray, the rules of KubeRay's operator and their own comments."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from waver.cli import app
from waver.config import load_config

FOLDER = Path(__file__).parents[1] / "cluster"
LAUNCHERS = ("aws.yaml", "gcp.yaml", "on-premise.yaml")
KUBERAY = ("kuberay-cluster.yaml", "kuberay-job.yaml")
MANIFESTS = (*KUBERAY, "kuberay-storage.yaml")
STARTERS = (*LAUNCHERS, *MANIFESTS, "one-machine.sh", "Dockerfile")
HEADINGS = ("What it does:", "Fill in:", "Cost of leaving it", "Shut down:")
PLACEHOLDER = re.compile(r"<[A-Z][A-Z0-9_]*>")
VERBS = "quickstart|ingest|vocabulary|match|train|evaluate|robustness|tune|doctor|board|submit"
IN_IMAGE = "/opt/waver/"
"""Folder of the experiments in an image."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses duplicate keys, of which PyYAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"line {node.start_mark.line + 1}: duplicate key in {keys}"
        return super().construct_mapping(node, deep)


def text_of(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def parsed(name: str) -> Any:
    return yaml.load(text_of(name), _UniqueKeyLoader)


def head_and_body(name: str) -> tuple[str, str]:
    """Returns the comment at the beginning of a file, without `#`, and the rest."""
    lines = text_of(name).splitlines()
    lines = lines[1:] if lines[0].startswith("#!") else lines
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").strip() for line in lines[:end]), "\n".join(lines[end:])


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


def waver_commands(text: str) -> list[list[str]]:
    """Returns the arguments of every `waver ...` command of a text; lines that end in a backslash are joined."""
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    found = re.findall(rf"(?:^|-- |`|<IMAGE> )waver ((?:{VERBS}) [^\n`]*)", joined, re.M)
    return [shlex.split(command) for command in found]


def _replace_where(block: str) -> str:
    """Replaces the variable `where` in a block of commands by its value."""
    assigned = re.search(r'^where="(.*)"$', block, re.M)
    return block.replace("$where", assigned[1]) if assigned else block


def all_files() -> list[str]:
    return sorted(path.name for path in FOLDER.iterdir())


def test_every_file_is_known():
    assert set(all_files()) == {*STARTERS, "README.md", "Dockerfile.dockerignore"}


@pytest.mark.parametrize("name", STARTERS)
def test_head_has_all_headings_in_order(name):
    head, _ = head_and_body(name)
    places = [head.find(heading) for heading in HEADINGS]
    assert places == sorted(places), f"{HEADINGS} in this order, found at {places}"
    assert places[0] == 0
    for start, end in zip(places, [*places[1:], len(head)], strict=True):
        assert len(head[start:end]) > 40, head[start:end]


@pytest.mark.parametrize("name", STARTERS)
def test_placeholders_are_listed(name):
    head, body = head_and_body(name)
    listed = head[head.find("Fill in:") : head.find("Cost of leaving it")]
    # The Dockerfile uses its placeholder only in the commands that build the image.
    used = head[head.find("Shut down:") :] if name == "Dockerfile" else body
    assert set(PLACEHOLDER.findall(used)) == set(PLACEHOLDER.findall(listed))
    # No placeholder has another form.
    assert set(re.findall(r"<[^<>\s|]+>|\{\{[^}]*\}\}|\bTODO\b|\bYOUR_\w+|\bmy-\w+", body)) <= set(
        PLACEHOLDER.findall(body)
    )


@pytest.mark.parametrize("name", all_files())
def test_files_name_no_machine_account_or_secret(name):
    text = text_of(name)
    assert not re.findall(r"(?:/work|/root|/home/(?!ray\b)\w+|/tmp/w|/opt/pypi)\b", text)
    assert not re.findall(r"index-url|pypi|:5000/|\bghcr\.io|\bdocker\.io", text)
    assert not re.findall(
        r"AKIA\w{12,}|BEGIN [A-Z ]*PRIVATE KEY|(?:secret|password|token)\s*[:=]\s*[\"']?\w{16,}", text, re.I
    )
    assert not [ip for ip in re.findall(r"\b\d+\.\d+\.\d+\.\d+\b", text) if ip != "127.0.0.1"]


@pytest.mark.parametrize("name", [*STARTERS, "README.md"])
def test_commands_are_valid_commands_of_waver(name, repository, monkeypatch):
    monkeypatch.chdir(repository)
    monkeypatch.setenv("PWD", str(repository))
    text = text_of(name)
    if name == "README.md":
        text = "\n".join(map(_replace_where, re.findall(r"```bash\n(.*?)```", text, re.S)))
    elif name.endswith(".yaml"):
        text = "\n".join([head_and_body(name)[0], *strings(parsed(name))])
    else:
        text = head_and_body(name)[0]
    commands = waver_commands(text)
    assert commands or name in ("kuberay-storage.yaml",)
    for words in commands:
        verb, *arguments = [os.path.expandvars(word).replace(IN_IMAGE, "") for word in words]
        if verb in ("train", "ingest", "match", "vocabulary"):
            result = CliRunner().invoke(app, [verb, *arguments, "--print-config"])
            assert result.exit_code == 0, f"{words}: {result.output}{result.exception}"
            experiment = yaml.safe_load(result.stdout)
            assert experiment["name"] == load_config(arguments[0], {}).name
        else:
            result = CliRunner().invoke(app, [verb, "--help"])
            assert result.exit_code == 0
            for option in (word for word in arguments if word.startswith("--")):
                assert option in result.stdout, words


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_files_match_the_schema_of_ray(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = parsed(name)
    validate_config(prepare_config(config))
    # Ray replaces a missing list by its default, which installs another wheel.
    if config["provider"]["type"] != "local":
        assert {"setup_commands", "head_setup_commands", "worker_setup_commands"} <= config.keys()
    for role in ("head", "worker"):
        starts = [command for command in config[f"{role}_start_ray_commands"] if "ray start" in command]
        assert len(starts) == 1
        assert "RAY_AUTH_MODE=token" in starts[0]
        assert ("--head" in starts[0]) == (role == "head")
    head = next(command for command in config["head_start_ray_commands"] if "ray start" in command)
    assert "--dashboard-host=127.0.0.1" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launchers_copy_the_files_that_install_waver(name, repository):
    file_mounts = parsed(name)["file_mounts"]
    mounts = {Path(source).name: target for target, source in file_mounts.items() if not source.startswith("~")}
    if not mounts:  # on shared machines waver is installed by hand
        return
    for source, target in mounts.items():
        assert (repository / source).exists()
        assert target == f"~/waver/{source}"
    project = (repository / "pyproject.toml").read_text()
    assert {"waver", "experiments", "pyproject.toml"} <= mounts.keys()
    for needed in re.findall(r'^readme = "(.*)"|^license-files = \["(.*)"\]', project, re.M):
        assert "".join(needed) in mounts


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_idle_clouds_keep_only_the_head(name):
    config = parsed(name)
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    workers = {kind: node for kind, node in types.items() if kind != config["head_node_type"]}
    assert {kind: node["labels"] for kind, node in workers.items()} == {
        "decode": {"waver.role": "decode"},
        "train": {"waver.role": "train"},
    }
    assert all(node["min_workers"] == 0 for node in workers.values())
    assert config["max_workers"] == sum(node["max_workers"] for node in workers.values())
    assert 0 < config["idle_timeout_minutes"] <= 15
    assert config["provider"]["cache_stopped_nodes"] is False
    # Ray gives a role only to the head: without one in its node type, a worker could not open the bucket.
    role = {"aws.yaml": "IamInstanceProfile", "gcp.yaml": "serviceAccounts"}[name]
    assert all(node["node_config"].get(role) for node in workers.values())


def test_kuberay_files_have_the_kinds_and_names_that_the_operator_requires():
    cluster, job = (parsed(name) for name in KUBERAY)
    for manifest, kind in ((cluster, "RayCluster"), (job, "RayJob")):
        assert manifest["apiVersion"] == "ray.io/v1"
        assert manifest["kind"] == kind
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", manifest["metadata"]["name"])
    # Both files describe the same cluster.
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]


def test_kuberay_cluster_requires_a_token_and_scales_labelled_groups():
    spec = parsed("kuberay-cluster.yaml")["spec"]
    assert tuple(map(int, spec["rayVersion"].split("."))) >= (2, 52, 0)  # older versions refuse authOptions
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"  # v1 does not know labels
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert set(groups) == {"decode", "train"}
    for name, group in groups.items():
        assert 0 == group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["labels"] == {"waver.role": name}
    gpus = groups["train"]["template"]["spec"]["containers"][0]["resources"]
    assert gpus["limits"]["nvidia.com/gpu"] == gpus["requests"]["nvidia.com/gpu"] > 0
    for group in (spec["headGroupSpec"], *groups.values()):
        params = group["rayStartParams"]
        assert all(isinstance(value, str) for value in params.values())
        assert not {"labels", "resources"} & params.keys()  # refused: labels are a field of the group
        check_pod(group["template"]["spec"])


def check_pod(pod: dict[str, Any]) -> None:
    """Checks that a pod has a name, an image, limits, shared storage and shared memory, and does not run as root."""
    [container] = pod["containers"]
    assert container["name"]
    assert container["image"] == "<IMAGE>"
    # Ray takes the limits for the resources of the node.
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
    assert pod.get("restartPolicy", "Never") == "Never"  # autoscaler v2 refuses others
    assert pod["securityContext"]["runAsNonRoot"] is True
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    claim = parsed("kuberay-storage.yaml")["metadata"]["name"]
    assert mounts["/shared"]["persistentVolumeClaim"]["claimName"] == claim
    shm = mounts["/dev/shm"]["emptyDir"]
    assert shm["medium"] == "Memory"
    size, memory = (
        int(text.removesuffix("Gi")) for text in (shm["sizeLimit"], container["resources"]["limits"]["memory"])
    )
    # Ray's object store takes 30 % of the memory; objects count as memory of the pod.
    assert 0.2 * memory <= size <= 0.5 * memory


def test_kuberay_pods_have_time_to_write_a_checkpoint():
    train = parsed("kuberay-cluster.yaml")["spec"]["workerGroupSpecs"][1]["template"]["spec"]
    from ray._private import ray_constants

    name = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
    assert hasattr(ray_constants, name)  # else Ray would not read it
    [drains] = [int(variable["value"]) for variable in train["containers"][0]["env"] if variable["name"] == name]
    assert 60 <= drains <= train["terminationGracePeriodSeconds"] - 10


def test_kuberay_job_is_retried_and_shuts_its_cluster_down():
    spec = parsed("kuberay-job.yaml")["spec"]
    assert spec["submissionMode"] == "K8sJobMode"
    assert spec["entrypoint"].startswith("waver train ")
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] > 0
    environment = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) >= 30
    assert all(isinstance(value, str) for value in environment.values())


def test_storage_can_be_written_by_many_pods():
    claim = parsed("kuberay-storage.yaml")
    assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["spec"]["resources"]["requests"]["storage"]


def test_all_files_name_the_same_version_of_ray():
    versions = {found for name in all_files() for found in re.findall(r"\bray\[[a-z,]+\]==([\d.]+)", text_of(name))}
    assert versions == {parsed("kuberay-cluster.yaml")["spec"]["rayVersion"]}


def test_dockerfile_copies_the_files_that_its_ignore_file_includes(repository):
    body = head_and_body("Dockerfile")[1]
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", body, re.M) for word in line.split()}
    included = {line[1:] for line in text_of("Dockerfile.dockerignore").splitlines() if line.startswith("!")}
    assert copied == included
    assert all((repository / name).exists() for name in copied)
    users = re.findall(r"^USER (\w+)$", body, re.M)
    assert users[-1:] == ["ray"]
    assert re.search(r"useradd --uid (\d+)", body)[1] == str(
        parsed("kuberay-cluster.yaml")["spec"]["headGroupSpec"]["template"]["spec"]["securityContext"]["runAsUser"]
    )
    extras = set(re.findall(r"waver\[([a-z,]+)\]", body)[0].split(","))
    assert all(re.search(rf"^{extra} = \[", (repository / "pyproject.toml").read_text(), re.M) for extra in extras)


def test_readme_names_every_file_and_no_other():
    named = set(re.findall(r"\]\(([\w.-]+)\)", text_of("README.md")))
    assert {name for name in named if "/" not in name} == {*STARTERS}
    for heading in ("## Jobs", "## Storage", "## When things break"):
        assert f"\n{heading}\n" in text_of("README.md")
