import zipfile

import pytest

from waver.on_ray.jobs import PackageError, check_package, package_size
from waver.on_ray.jobs.package import heaviest


def test_size_is_that_of_the_archive(tmp_path):
    files = {"a.txt": 5, "folder/b.bin": 70_000, "folder/ä.txt": 0}
    (tmp_path / "folder").mkdir()
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name, size in files.items():
            (tmp_path / name).write_bytes(bytes(size))
            archive.write(tmp_path / name, name)
    assert package_size(files) == (tmp_path / "all.zip").stat().st_size


def test_heaviest_opens_folders_as_long_as_one_thing_weighs_nearly_all():
    files = {
        "data/videos/a.mp4": 600,
        "data/videos/b.mp4": 600,
        "data/README": 1,
        "weights/clip.pt": 400,
        "notes/x.txt": 50,
        "notes/y.txt": 50,
        "big.bin": 300,
    }
    assert heaviest(files) == [
        ("data/videos/", 1200, 2),
        ("weights/clip.pt", 400, 1),
        ("big.bin", 300, 1),
        ("notes/", 100, 2),
    ]
    assert heaviest(files, count=1) == [("data/videos/", 1200, 2)]


def test_what_is_too_large_is_refused_by_name(tmp_path):
    mib = 2**20
    files = {"videos/a.mp4": 70 * mib, "videos/b.mp4": 50 * mib, "waver/x.py": 100}
    check_package(tmp_path, files, package_size(files) + 1)
    with pytest.raises(PackageError) as refused:
        check_package(tmp_path, files, package_size(files))
    with pytest.raises(PackageError, match=r"120.0 MiB would be uploaded, Ray takes less than 100 MiB"):
        check_package(tmp_path, files, 100 * mib)
    assert "    120.0 MiB  videos/  (2 files)\n" in str(refused.value)
    assert "--exclude '/videos/'" in str(refused.value)
