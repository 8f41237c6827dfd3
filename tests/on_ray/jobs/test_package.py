import zipfile

import pytest

from waver.on_ray.jobs import PackageError, check_package, package_size
from waver.on_ray.jobs.package import largest_entries


def test_size_is_that_of_a_zip_archive(tmp_path):
    files = {"a.txt": 5, "folder/b.bin": 70_000, "folder/ä.txt": 0}
    (tmp_path / "folder").mkdir()
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name, size in files.items():
            (tmp_path / name).write_bytes(bytes(size))
            archive.write(tmp_path / name, name)
    assert package_size(files) == (tmp_path / "all.zip").stat().st_size


def test_a_folder_is_replaced_by_the_entry_that_takes_most_of_it():
    files = {
        "data/videos/a.mp4": 600,
        "data/videos/b.mp4": 600,
        "data/README": 1,
        "weights/clip.pt": 400,
        "notes/x.txt": 50,
        "notes/y.txt": 50,
        "big.bin": 300,
    }
    assert largest_entries(files) == [
        ("data/videos/", 1200, 2),
        ("weights/clip.pt", 400, 1),
        ("big.bin", 300, 1),
        ("notes/", 100, 2),
    ]
    assert largest_entries(files, count=1) == [("data/videos/", 1200, 2)]


def test_a_large_package_is_refused_with_its_largest_entries(tmp_path):
    mib = 2**20
    files = {"videos/a.mp4": 70 * mib, "videos/b.mp4": 50 * mib, "waver/x.py": 100}
    check_package(tmp_path, files, package_size(files) + 1)
    with pytest.raises(PackageError) as refused:
        check_package(tmp_path, files, package_size(files))
    with pytest.raises(PackageError, match=r"120.0 MiB would be uploaded, and Ray accepts less than 100 MiB"):
        check_package(tmp_path, files, 100 * mib)
    assert "    120.0 MiB  videos/  (2 files)\n" in str(refused.value)
    assert "--exclude '/videos/'" in str(refused.value)
