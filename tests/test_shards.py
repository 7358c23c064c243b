import numpy as np
import pytest

from usl import InputError, shards
from usl.shards import Shards, Snapshot


def test_parts_are_kept_for_the_same_source_only(tmp_path, caplog):
    caplog.set_level("INFO", "usl")
    store = Shards(tmp_path / "s", {"k": 3}, [2, 2, 2, 1], "things")
    assert not store.has(2)
    store.save(2, [np.arange(3), np.eye(2)])
    assert store.has(2) and not store.has(1)
    again = Shards(tmp_path / "s", {"k": 3}, [2, 2, 2, 1], "things")
    assert "things: 1 of 4 shards are there already" in caplog.text
    first, second = again.load(2)
    assert first.tolist() == [0, 1, 2] and second.tolist() == np.eye(2).tolist()
    for source, sizes in (({"k": 4}, [2, 2, 2, 1]), ({"k": 4}, [2, 2, 1, 2])):
        store = Shards(tmp_path / "s", source, sizes, "things")
        assert not store.has(2)
        store.save(2, [np.arange(3)])


def test_a_part_of_which_an_array_is_missing_is_not_there(tmp_path, monkeypatch):
    store = Shards(tmp_path / "s", {}, [3], "things")

    def full(path, array):
        if path.name.endswith("-1.npy"):
            raise InputError("no space left")
        path.touch()

    monkeypatch.setattr("usl.shards.save_array", full)
    with pytest.raises(InputError, match="no space left"):
        store.save(0, [np.arange(3), np.arange(3)])
    assert len(list(store.folder.glob("*.npy"))) == 1 and not store.has(0)


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write .*file/s"):
        Shards(tmp_path / "file" / "s", {}, [3], "things")


def test_the_last_state_is_kept_for_the_same_source_only(tmp_path, monkeypatch):
    store = Snapshot(tmp_path / "s", {"k": 3}, "steps")
    assert store.last() == (0, []) and not store.due
    monkeypatch.setattr(shards, "SAVE_EVERY", 0.0)
    assert store.due
    for number in (9, 10):
        store.keep(number, [np.arange(number), np.eye(2)])
    number, (first, second) = Snapshot(tmp_path / "s", {"k": 3}, "steps").last()
    assert (
        number == 10 and first.tolist() == list(range(10)) and second.tolist() == [[1, 0], [0, 1]]
    )
    assert len(list(store.folder.iterdir())) == 1 + 3
    assert Snapshot(tmp_path / "s", {"k": 4}, "steps").last() == (0, [])


@pytest.mark.parametrize("damaged", [False, True])
def test_without_a_whole_last_state_the_one_before_is_taken(tmp_path, monkeypatch, caplog, damaged):
    store = Snapshot(tmp_path / "s", {}, "steps")
    store.keep(3, [np.arange(3), np.arange(3)])

    def full(path, array):
        raise InputError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("usl.shards.save_array", full)
        store.keep(4, [np.arange(4), np.arange(4)])
    assert "steps: its state is not kept: no space left" in caplog.text
    if damaged:
        np.save(store.folder / "00003-1.npy", np.arange(4))
    number, found = Snapshot(tmp_path / "s", {}, "steps").last()
    assert (number, len(found)) == ((0, 0) if damaged else (3, 2))


@pytest.mark.parametrize("damage", ["changed", "cut off", "missing", "manifest", "another"])
def test_a_part_that_has_changed_is_not_there(tmp_path, caplog, damage):
    store = Shards(tmp_path / "s", {}, [3, 3], "things")
    store.save(1, [np.arange(3), np.eye(2)])
    path = store.folder / "00001-1.npy"
    if damage == "changed":
        np.save(path, np.eye(2) + 1e-9)
    elif damage == "cut off":
        path.write_bytes(path.read_bytes()[:-3])
    elif damage == "missing":
        path.unlink()
    else:
        text = "[" if damage == "manifest" else '["a", "b"]'
        (store.folder / "00001.json").write_text(text)
    assert not store.has(1)
    assert "things: shard 1 is missing or has changed, and is computed again" in caplog.text
    store.save(1, [np.arange(3)])
    assert store.has(1) and len(store.load(1)) == 1
