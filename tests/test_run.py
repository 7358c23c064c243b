"""Records, reuse, and what happens to files that a run did not make."""

import json
import logging
import subprocess
import sys
from subprocess import PIPE

import numpy as np
import pytest
from commands import CIFAR
from helpers import ROOT

from usl import InputError
from usl.artifacts import load_array, save_array
from usl.cli import call_of
from usl.run import Expected
from usl.stages.inputs import begin as stage_begin
from usl.stages.table import Stage, read_settings
from usl.stages.usl import usl_defaults

SCRIPT = str(ROOT / CIFAR)
EXPECTED = [Expected("a.npy", (3,)), Expected("b.npy", (3,), kind="iu", low=0, high=9)]


class Maker:
    """Computes the arrays of EXPECTED and counts how often."""

    def __init__(self, value=1.0):
        self.value, self.calls = value, 0

    def __call__(self):
        self.calls += 1
        return [np.full(3, self.value), np.full(3, 2)]


@pytest.fixture
def begin(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / "selective_labeling")

    def begin(*opts, part=False):
        argv = ["--opts", "RUN_DIR", str(tmp_path / "run"), *map(str, opts)]
        cfg = read_settings(Stage(usl_defaults), argv, script=SCRIPT)
        return stage_begin(cfg, call_of(SCRIPT, argv), part=part)

    return begin


def go(run, maker, source=1, by_budget=False):
    return run.cached(EXPECTED, {"made from": source}, maker, by_budget=by_budget)


KEEP = ("RECOMPUTE_ALL", False, "RECOMPUTE_NUM_DEP", False)


def test_saved_arrays_are_reused_while_they_hold(begin):
    go(begin(*KEEP), maker := Maker())
    again = go(begin(*KEEP), maker)
    assert maker.calls == 1 and again[0].tolist() == [1.0] * 3
    go(begin(*KEEP), maker, source=2)
    assert maker.calls == 2


def test_a_finished_run_is_computed_anew(begin):
    run = begin()
    go(run, maker := Maker())
    run.finish()
    go(run := begin(), maker)
    assert maker.calls == 2
    run.finish()
    # Recomputing replaces the files.
    go(run := begin(), Maker(5.0))
    assert load_array(run.folder / "a.npy").tolist() == [5.0] * 3
    assert not list(run.folder.glob("*.released"))


def test_an_unfinished_run_goes_on(begin):
    go(begin(), maker := Maker())
    go(begin(), maker)
    assert maker.calls == 1
    # Also with other settings, but for what depends on them.
    go(begin("USL.KNN_K", 3), maker)
    assert maker.calls == 1
    go(begin(), maker, source=2)
    assert maker.calls == 2


def test_what_depends_on_the_budget_can_be_redone_alone(begin):
    opts = ("RECOMPUTE_ALL", False, "RECOMPUTE_NUM_DEP", True)
    run = begin(*opts)
    go(run, first := Maker(), by_budget=True)
    run.finish()
    go(begin(*opts), first, by_budget=True)
    assert first.calls == 2


def test_a_changed_file_is_not_taken_for_the_recorded_one(begin):
    run = begin()
    go(run, maker := Maker())
    save_array(run.folder / "a.npy", np.zeros(3))
    go(begin(), maker)
    assert maker.calls == 2


def test_killed_between_record_and_file(begin, monkeypatch):
    run = begin(*KEEP)
    go(run, Maker(1.0))
    run = begin(*KEEP)
    monkeypatch.setattr("usl.run.save_array", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        go(run, Maker(7.0), source=2)
    monkeypatch.undo()
    # The old file is there, recorded as another: it is neither reused nor taken for a released one.
    assert go(begin(*KEEP), Maker(7.0), source=2)[0].tolist() == [7.0] * 3
    assert not list(run.folder.glob("*.released"))


def test_released_files_are_used(begin):
    folder = begin(*KEEP).folder
    save_array(folder / "a.npy", np.array([4.0, 5.0, 6.0]))
    save_array(folder / "b.npy", np.array([0, 9, 1], dtype=np.int32))
    a, b = go(begin(*KEEP), maker := Maker())
    assert (maker.calls, a.tolist(), b.tolist()) == (0, [4.0, 5.0, 6.0], [0, 9, 1])


def test_released_files_without_the_optional_one_are_reused(begin):
    expected = [Expected("a.npy", (3,)), Expected("c.npy", (3,), optional=True)]
    folder = begin(*KEEP).folder
    save_array(folder / "a.npy", np.zeros(3))

    def never():
        raise AssertionError

    for _ in range(3):
        assert begin(*KEEP).cached(expected, {"from": 1}, never)[1] is None


def test_released_files_are_kept_when_replaced(begin):
    folder = begin().folder
    save_array(folder / "a.npy", np.zeros(3))
    save_array(folder / "b.npy", np.full(3, 2))
    go(begin(), maker := Maker())
    assert maker.calls == 1
    assert load_array(folder / "a.npy.released").tolist() == [0.0] * 3
    assert not (folder / "b.npy.released").exists()  # it did not differ


def test_a_text_that_somebody_changed_is_kept(begin):
    run = begin()
    for text in ("Index\n1\n", "Index\n2\n", "Index\n2\n"):
        run.save_text("lists/selected.csv", text)
        run = begin(*KEEP)
    path, log = run.folder / "lists" / "selected.csv", run.folder / "run.log"
    assert not list(path.parent.glob("*.kept*")) and "kept as" not in log.read_text()
    for round in ("", ".1"):
        path.write_text(f"Index,Label\n2,cat{round}\n")
        run.save_text("lists/selected.csv", "Index\n3\n")
        assert path.read_text() == "Index\n3\n"
        kept = path.with_name(f"selected.csv.kept{round}")
        assert kept.read_text() == f"Index,Label\n2,cat{round}\n"
        said = f"lists/selected.csv is not as it was written here; kept as {kept.name}\n"
        assert said in log.read_text()
        run = begin()
    # What comes from elsewhere is kept, too, unless it is the same.
    for text, left in (("Index\n4\n", 0), ("Index\n5\n", 1)):
        (run.folder / "other.csv").write_text(text)
        run.save_text("other.csv", "Index\n4\n")
        assert len(list(run.folder.glob("other.csv.kept"))) == left


def test_released_files_stand_only_for_what_they_were_taken_for(begin):
    folder = begin(*KEEP).folder
    save_array(folder / "a.npy", np.zeros(3))
    save_array(folder / "b.npy", np.full(3, 2))
    go(begin(*KEEP), maker := Maker(), source="A")
    go(begin(*KEEP), maker, source="A")
    assert maker.calls == 0
    # Other features: the file is not taken again, and it is not lost either.
    assert go(begin(*KEEP), maker, source="B")[0].tolist() == [1.0] * 3
    assert maker.calls == 1 and load_array(folder / "a.npy.released").tolist() == [0.0] * 3
    # Nor is it when another is put there and replaced.
    save_array(folder / "a.npy", np.full(3, 8.0))
    go(begin(), Maker(9.0), source="C")
    assert load_array(folder / "a.npy.released").tolist() == [0.0] * 3
    assert load_array(folder / "a.npy.released.1").tolist() == [8.0] * 3


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(4), r"has shape \(4,\), needed is \(3\)"),
        (np.array([0.0, np.nan, 0.0]), "has values from nan to nan"),
        (np.array(["a", "b", "c"]), "holds <U1 values"),
    ],
)
def test_released_files_that_do_not_fit(begin, array, message):
    folder = begin(*KEEP).folder
    np.save(folder / "a.npy", array)
    save_array(folder / "b.npy", np.full(3, 2))
    with pytest.raises(InputError, match=message):
        go(begin(*KEEP), Maker())


def test_released_values_out_of_range(begin):
    folder = begin(*KEEP).folder
    save_array(folder / "a.npy", np.zeros(3))
    save_array(folder / "b.npy", np.array([0, 10, 0]))
    with pytest.raises(InputError, match=r"b.npy has values from 0 to 10, needed are 0 to 9"):
        go(begin(*KEEP), Maker())


def test_the_record_says_what_ran(begin, monkeypatch):
    run = begin()
    run.note(answer=42)
    with run.timed("step"):
        pass
    run.finish()
    record = json.loads((run.folder / "run.json").read_text())
    assert record["answer"] == 42 and record["finished"] and "step" in record["timings"]
    assert {"python", "torch", "usl", "numpy"} <= set(record["versions"])
    assert record["command"].startswith("cd selective_labeling && python usl-cifar.py --opts")
    monkeypatch.chdir(run.folder)
    # Relative paths of --opts start here, so the command must come back here.
    assert begin().command.startswith(f"cd {run.folder} && python {SCRIPT} --opts")
    assert (run.folder / "config.yaml").exists() and (run.folder / "run.log").exists()


def test_skip_save_writes_nothing(begin, tmp_path):
    run = begin("SKIP_SAVE", True)
    go(run, maker := Maker())
    run.finish()
    assert maker.calls == 1 and not (tmp_path / "run").exists()


def test_a_foreign_record(begin):
    folder = begin().folder
    for text in ("{", "[]", '{"arrays": 1}', '{"arrays": {"a.npy": 1}, "stale": {}}'):
        (folder / "run.json").write_text(text)
        with pytest.raises(InputError, match="is not a record of a run; remove it"):
            begin("USL.KNN_K", 7)
    # A run that is refused leaves the settings of the one before.
    assert "KNN_K: 7" not in (folder / "config.yaml").read_text()


def test_files_that_a_killed_run_left_half_written_are_removed(begin):
    folder = begin().folder
    (folder / "seed1").mkdir()
    for name in (".a.npy.1.partial", "seed1/.checkpoint.pth.1.partial"):
        (folder / name).touch()
    begin()
    assert not list(folder.rglob("*.partial"))


def test_whether_a_file_from_elsewhere_will_be_taken(begin):
    source = {"made from": 1}
    assert not begin(*KEEP).given("a.npy", source)
    save_array(begin(*KEEP).folder / "a.npy", np.zeros(3))
    save_array(begin(*KEEP).folder / "b.npy", np.zeros(3, np.int64))
    assert begin(*KEEP).given("a.npy", source) and not begin().given("a.npy", source)
    go(begin(*KEEP), maker := Maker())
    # What was taken is taken again, for the same source alone, while it is the same file.
    assert begin(*KEEP).given("a.npy", source)
    assert not begin(*KEEP).given("a.npy", {"made from": 2})
    save_array(begin(*KEEP).folder / "a.npy", np.ones(3))
    assert begin(*KEEP).given("a.npy", {"made from": 2})
    assert maker.calls == 0
    # What a run has made is not from elsewhere.
    go(begin(), maker)
    assert not begin(*KEEP).given("a.npy", source)


def test_run_dir_that_cannot_be(tmp_path, begin):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot use `run_dir` .* choose another"):
        begin("RUN_DIR", tmp_path / "file" / "run")


def test_run_dir_that_must_not_be_there(begin):
    begin()
    with pytest.raises(InputError, match="is there already; choose another `run_name`"):
        begin("SAVE_DIR_EXIST_OK", False)


def test_the_log_goes_to_the_file(begin):
    run = begin()
    logging.getLogger("usl").info("hello")
    assert "hello" in (run.folder / "run.log").read_text()


def test_a_part_of_a_run_has_its_record_and_writes_in_its_log(begin, tmp_path):
    begin()
    part = begin("RUN_DIR", tmp_path / "run" / "part", part=True)
    logging.getLogger("usl").info("of the part")
    assert not (part.folder / "run.log").exists() and (part.folder / "config.yaml").exists()
    assert "of the part" in (tmp_path / "run" / "run.log").read_text()


def test_arrays_below_the_folder(begin):
    """Are kept, reused and replaced as others are; of many, not each has a line in the log."""
    expected = [Expected("cells/4/a.npy", (2,))]
    values, calls = [np.zeros(2), np.ones(2)], []

    def compute(run, source, part=False):
        def made():
            calls.append(source)
            return [values[source]]

        return run.cached(expected, {"made from": source}, made, part=part)[0].tolist()

    run = begin(*KEEP)
    log = run.folder / "run.log"
    assert compute(run, 0) == [0, 0] and compute(begin(*KEEP), 0, part=True) == [0, 0]
    assert calls == [0] and "reused" not in log.read_text()
    run = begin(*KEEP)
    assert compute(run, 0) == [0, 0] and calls == [0]
    assert "reused cells/4/a.npy" in log.read_text()
    save_array(run.folder / "cells/4/a.npy", np.full(2, 7.0))
    assert compute(run, 1) == [7, 7]
    run = begin()
    assert compute(run, 1) == [1, 1]
    kept = load_array(run.folder / "cells/4/a.npy.released")
    assert kept.tolist() == [7, 7] and "kept as a.npy.released" in log.read_text()


@pytest.mark.slow
def test_a_second_run_in_a_folder_at_work_is_refused(begin, tmp_path):
    holder = (
        "import sys; from pathlib import Path; from usl.run import _lock;"
        "_lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", holder, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another run is at work in .*run; wait for it, or"):
            begin()
        assert not (tmp_path / "run" / "config.yaml").exists()
        other.stdin.close()
    begin()
    begin()  # one process may begin again where it has begun
