"""Arrays on disk: writes that fail, files that are no arrays."""

import numpy as np
import pytest

from usl import InputError
from usl.artifacts import load_array, replacing


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(InputError, match="No space left"), replacing(path) as file:
        file.write(b"new")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_bad_arrays(tmp_path):
    good = tmp_path / "good.npy"
    np.save(good, np.arange(100.0))
    (tmp_path / "cut.npy").write_bytes(good.read_bytes()[:-40])
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "empty.npy").touch()
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "several.npz", a=np.zeros(3), b=np.zeros(3))
    (tmp_path / "page.npy").write_text("\n<!DOCTYPE html><title>Sign in</title>")
    (tmp_path / "pointer.npy").write_text("version https://git-lfs.github.com/spec/v1\noid 1")
    for name, message in [
        ("none.npy", "there is no file"),
        ("cut.npy", "damaged or not .npy"),
        ("text.npy", "holds pickled objects or is not .npy"),
        ("empty.npy", "damaged or not .npy"),
        ("pickled.npy", "holds pickled objects"),
        ("several.npz", r"archive of 2 arrays \(a, b\)"),
        ("page.npy", "page.npy: it is a web page, .* download the file itself"),
        ("pointer.npy", "it is a Git LFS pointer to the file; fetch the file with git lfs pull"),
        (".", "it is a folder"),
    ]:
        with pytest.raises(InputError, match=message):
            load_array(tmp_path / name)


def test_an_archive_of_one_array_is_that_array(tmp_path):
    np.savez(tmp_path / "one.npz", features=np.arange(6).reshape(2, 3))
    assert load_array(tmp_path / "one.npz", shape=(2, None)).tolist() == [[0, 1, 2], [3, 4, 5]]
