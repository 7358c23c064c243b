"""USL on a messy folder of somebody's own, as a person would run it."""

import json
import re

import numpy as np
import pytest
from commands import IMAGES, own_images
from helpers import KINDS, csv_rows, make_folder, printed_alone, run_script
from PIL import Image

import usl
from usl import InputError
from usl.stages.selection import neighbors_for

ODD = {
    "plain/name with spaces.jpg": ("RGB", (60, 40)),
    "plain/ünïcödé.png": ("RGB", (50, 70)),
    'plain/it\'s "quoted".png': ("RGB", (40, 40)),
    "plain/<script>alert(1)<.png": ("RGB", (40, 40)),
    "=2+3.png": ("RGB", (33, 44)),
    "deep/er/and/deeper.png": ("L", (80, 20)),
    "one.png": ("RGB", (1, 1)),
}


@pytest.fixture
def photos(tmp_path):
    """Images of every kind, broken ones, and what lies about beside them."""
    root = make_folder(tmp_path, KINDS | ODD) / "train"
    turned = Image.new("RGB", (30, 50), "green")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(root / "turned.jpg", exif=exif)
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(root / "moving.gif", save_all=True, append_images=frames[1:])
    for name, content in {
        "broken.jpg": b"\xff\xd8\xff nothing",
        "empty.png": b"",
        "page.png": b"<html>404</html>",
        "notes.txt": b"x",
        "Thumbs.db": b"x",
        ".hidden.png": b"x",
        "__MACOSX/._one.png": b"x",
    }.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    (root / "gone.png").symlink_to(root / "nowhere.png")
    return root


def test_a_messy_folder(photos, tmp_path, script, capsys):
    run = tmp_path / "run"
    script(IMAGES, *own_images(photos, run, "PICKS_TO", "folder"))
    out = capsys.readouterr().out
    picks = printed_alone(out)
    assert len(set(picks)) == 8 and f"copies: {run / 'picks'}" in out
    unreadable = {row["ImageID"]: row["Reason"] for row in csv_rows(run / "unreadable.csv")}
    assert set(unreadable) == {"broken.jpg", "empty.png", "gone.png", "page.png"}
    assert "No such file" in unreadable["gone.png"]
    names = sorted([*KINDS, *ODD, "turned.jpg", "moving.gif", *unreadable])
    rows = csv_rows(run / "selected.csv")
    assert [int(row["Index"]) for row in rows] == picks
    # In the order of the paths; a formula is made harmless.
    for row in rows:
        assert row["ImageID"].removeprefix("'") == names[int(row["Index"])]
    copies = {path.relative_to(run / "picks").as_posix() for path in (run / "picks").rglob("*.*")}
    assert {name for name in copies if (run / "picks" / name).is_file()} == {
        names[pick] for pick in picks
    }
    log = (run / "run.log").read_text()
    assert "density from the 10 nearest of 20 images" in log
    report = (run / "report.html").read_text()
    assert "<script>alert" not in report


@pytest.mark.usefixtures("no_pictures")
def test_another_rule_chooses_photos(photos, tmp_path, script, capsys):
    run = tmp_path / "run"
    script(IMAGES, *own_images(photos, run, "SELECTOR", "maxherding"))
    features = np.load(run / "memory_feats_list.npy")
    readable = np.flatnonzero(np.isfinite(features).all(axis=1))
    assert len(readable) == len(features) - 4
    chosen = usl.select(features[readable], 8, selector="maxherding").picks
    assert printed_alone(capsys.readouterr().out) == readable[chosen].tolist()


@pytest.mark.usefixtures("no_pictures")
def test_all_of_them_and_another_number_of_workers(photos, tmp_path, script, capsys):
    texts = []
    for workers in (1, 3):
        run = tmp_path / f"run{workers}"
        more = ("USL.NUM_SELECTED_SAMPLES", 20, "DATALOADER.WORKERS", workers)
        script(IMAGES, *own_images(photos, run, *more))
        texts.append((run / "selected.csv").read_text())
    assert texts[0] == texts[1]
    assert "'=2+3.png" in texts[0]


@pytest.mark.usefixtures("no_pictures")
def test_what_people_may_answer_reaches_the_tools(photos, tmp_path, script):
    more = (
        "EXPORT", "[labelstudio, cvat, folders]", "EXPORT_CLASSES", "[cat, dog]",
        "EXPORT_PREFIX", "https://example.org/p/",
    )  # fmt: skip
    script(IMAGES, *own_images(photos, tmp_path / "run", *more))
    exports = tmp_path / "run" / "exports"
    config = (exports / "labelstudio/seed1/config.xml").read_text()
    assert re.findall(r'<Choice value="(\w+)"', config) == ["cat", "dog"]
    tasks = json.loads((exports / "labelstudio/seed1/tasks.json").read_text())
    assert len(tasks) == 8
    assert all(task["data"]["image"].startswith("https://example.org/p/") for task in tasks)
    tags = json.loads((exports / "cvat/seed1/labels.json").read_text())
    assert [tag["name"] for tag in tags] == ["cat", "dog"]
    assert {"cat", "dog"} < {path.name for path in (exports / "folders/seed1").iterdir()}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("DATASET.ROOT_DIR", ""), "DATASET.ROOT_DIR is empty; give the place of your images"),
        (("DATASET.ROOT_DIR", "a" * 300), "there is no folder or file DATASET.ROOT_DIR .*a{300}"),
        (("DATASET.NAME", "digits"), "DATASET.NAME is 'digits'; choose images or folder"),
        (("PICKS_TO", "tar"), "unknown PICKS_TO 'tar'; choose folder or zip"),
        (("USL.NUM_SELECTED_SAMPLES", 25), "a budget of 25 picks from 24 images; choose 1 to 24"),
        (("USL.KNN_K", 30), "USL.KNN_K is 30; choose 2 to 24, the number of images"),
        (("DATASET.UNREADABLE", "stop"), "broken.jpg: .*; replace it, or move it elsewhere"),
    ],
)
def test_bad_input(photos, tmp_path, script, more, message):
    with pytest.raises(InputError, match=message):
        script(IMAGES, *own_images(photos, tmp_path / "run", *more))
    assert not list(tmp_path.glob("run/selected*"))


@pytest.mark.usefixtures("no_pictures")
def test_few_images_and_none(tmp_path, script, capsys):
    one = make_folder(tmp_path, {"only.png": ("RGB", (9, 9))}) / "train"
    script(IMAGES, *own_images(one, tmp_path / "run", "USL.NUM_SELECTED_SAMPLES", 1))
    assert printed_alone(capsys.readouterr().out) == [0]
    (one / "only.png").write_bytes(b"")
    with pytest.raises(InputError, match="none of the 1 images can be read; see the first: only"):
        script(IMAGES, *own_images(one, tmp_path / "other", "USL.NUM_SELECTED_SAMPLES", 1))


@pytest.mark.usefixtures("no_pictures")
def test_without_weights_the_error_says_how_to_try_at_once(photos, tmp_path, script, monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *names: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    argv = ("--cfg", "configs/images_usl.yaml", "--opts", "DATASET.ROOT_DIR", photos)
    message = (
        "dinov2.lvd142m are not on .*; give the file as MODEL.PRETRAIN_PATH, or try MODEL.ARCH"
    )
    with pytest.raises(InputError, match=message):
        script(IMAGES, *argv, "RUN_DIR", tmp_path, "USL.NUM_SELECTED_SAMPLES", 3)


def test_how_many_neighbours():
    assert [neighbors_for(0, n, 100) for n in (5, 1000, 20_000, 10**6)] == [5, 10, 50, 400]
    assert neighbors_for(7, 1000, 100) == 7


@pytest.mark.slow
def test_the_command_line(photos, tmp_path):
    done = run_script(IMAGES, *own_images(photos, tmp_path / "run", "PICKS_TO", "zip"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "picks.zip").exists() and "left out 1 .txt" in done.stderr
    assert np.load(tmp_path / "run" / "selected_indices_8_1.npy").shape == (8,)


@pytest.mark.usefixtures("no_pictures")
def test_a_run_among_the_images_is_refused(photos, script):
    with pytest.raises(InputError, match="is in DATASET.ROOT_DIR .*; choose another place"):
        script(IMAGES, *own_images(photos, photos / "run"))
    assert not (photos / "run").exists()


@pytest.mark.usefixtures("no_pictures")
def test_features_of_an_earlier_run_are_taken_with_their_nan(photos, tmp_path, script, capsys):
    script(IMAGES, *own_images(photos, tmp_path / "one"))
    first = printed_alone(capsys.readouterr().out)
    (tmp_path / "two").mkdir()
    features = (tmp_path / "one" / "memory_feats_list.npy").read_bytes()
    (tmp_path / "two" / "memory_feats_list.npy").write_bytes(features)
    more = ("RECOMPUTE_ALL", False, "RECOMPUTE_NUM_DEP", False)
    script(IMAGES, *own_images(photos, tmp_path / "two", *more))
    out = capsys.readouterr()
    assert printed_alone(out.out) == first
    assert "rows of NaN, whose images are never picked: 4" in out.err


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("value", [-1.0, "nan", "inf"])
def test_thresholds_that_are_none(photos, tmp_path, script, value):
    more = ("USL.NEAR_DUPLICATE_DISTANCE", value)
    with pytest.raises(InputError, match="USL.NEAR_DUPLICATE_DISTANCE is .*; choose a squared"):
        script(IMAGES, *own_images(photos, tmp_path / "run", *more))
