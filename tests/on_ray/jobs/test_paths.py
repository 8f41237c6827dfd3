import pytest

from waver.on_ray.jobs.paths import on_network, only_here, patterns_below


@pytest.mark.parametrize(
    ("name", "value", "here", "expected"),
    [
        ("storage.path", "storage", False, "is relative, and a job's own folder is deleted when it ends"),
        ("storage.path", "storage", True, "is relative"),
        ("data.videos", "videos", True, "is relative, and a job runs in a copy of the folder"),
        ("data.videos", "~/videos", True, "is the home of whoever runs Ray there"),
        ("data.videos", "{working_dir}/videos", False, "the folder that is uploaded"),
        ("data.videos", "{working_dir}/../{name}/videos", False, "the folder that is uploaded"),
        ("storage.path", "{tmp}/storage", False, "temporary files of one machine"),
        ("storage.path", "{tmp}/storage", True, None),
        ("data.videos", "{working_dir}/videos", True, None),
        ("data.videos", "/shared/videos", False, None),
        ("storage.path", "s3://bucket/waver", False, None),
    ],
)
def test_what_a_job_would_not_find(tmp_path, monkeypatch, name, value, here, expected):
    working_dir, tmp = tmp_path / "clone", tmp_path / "tmp"
    working_dir.mkdir()
    tmp.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp))
    value = value.format(working_dir=working_dir, tmp=tmp, name=working_dir.name)
    found = only_here(name, value, working_dir, here)
    assert (len(found) == 1 and expected in found[0]) if expected else found == []


def test_a_home_of_the_network_is_seen_elsewhere(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda1 / ext4 rw 0 0\nfiler:/home /home nfs4 rw 0 0\n/dev/sdb1 /home/local xfs rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n"
    )
    answers = {path: on_network(tmp_path.__class__(path), mounts) for path in ("/home/me", "/home/local/x", "/data")}
    assert answers == {"/home/me": True, "/home/local/x": False, "/data": False}
    assert not on_network(tmp_path, tmp_path / "no_such_file")


def test_patterns_are_anchored_in_the_folder(tmp_path):
    paths = [tmp_path / "a" / "store", "/elsewhere", tmp_path]
    assert patterns_below(paths, tmp_path) == ["/a/store"]
