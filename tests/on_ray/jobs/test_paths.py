import pytest

from waver.on_ray.jobs.paths import exclude_patterns, on_network, path_problem


@pytest.mark.parametrize(
    ("name", "value", "local", "expected"),
    [
        ("storage.path", "storage", False, "is relative, and the folder in which a job runs is deleted when it ends"),
        ("storage.path", "storage", True, "is relative"),
        ("data.videos", "videos", True, "is relative, and a job runs in a copy of the folder"),
        ("data.videos", "~/videos", True, "is the home of the user who runs Ray"),
        ("data.videos", "{working_dir}/videos", False, "the uploaded folder"),
        ("data.videos", "{working_dir}/../{name}/videos", False, "the uploaded folder"),
        ("storage.path", "{tmp}/storage", False, "a temporary folder of this machine"),
        ("storage.path", "{tmp}/storage", True, None),
        ("data.videos", "{working_dir}/videos", True, None),
        ("data.videos", "/shared/videos", False, None),
        ("storage.path", "s3://bucket/waver", False, None),
    ],
)
def test_path_problems(tmp_path, monkeypatch, name, value, local, expected):
    working_dir, tmp = tmp_path / "clone", tmp_path / "tmp"
    working_dir.mkdir()
    tmp.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp))
    value = value.format(working_dir=working_dir, tmp=tmp, name=working_dir.name)
    problem = path_problem(name, value, working_dir, local=local)
    assert expected in problem if expected else problem is None


def test_network_file_systems_are_recognised(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda1 / ext4 rw 0 0\nfiler:/home /home nfs4 rw 0 0\n/dev/sdb1 /home/local xfs rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n"
    )
    found = {path: on_network(tmp_path.__class__(path), mounts) for path in ("/home/me", "/home/local/x", "/data")}
    assert found == {"/home/me": True, "/home/local/x": False, "/data": False}
    assert not on_network(tmp_path, tmp_path / "no_such_file")


def test_exclude_patterns_are_anchored_in_the_folder(tmp_path):
    paths = [tmp_path / "a" / "store", "/elsewhere", tmp_path]
    assert exclude_patterns(paths, tmp_path) == ["/a/store"]
