"""A messy folder of somebody's photographs: the same picks on every run, and how long they take.

    python benchmarks/own_images.py FOLDER --files 20000

Makes FOLDER/photos of crops of the photographs that scikit-learn, matplotlib and scikit-image ship,
in nested folders, among what lies about in people's folders: broken, empty, huge, tiny, turned,
animated, transparent and deep images, copies, files of other kinds, names that are hard to quote,
links. Then chooses 100 with usl-images.py four times: at first, again, with other threads, and
killed in the middle; prints how long each took, and ends with an error unless selected.csv is the
same each time. --smoke: few files.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, PngImagePlugin

ROOT = Path(__file__).resolve().parents[1]
STAGE = ROOT / "selective_labeling"
NAMES = [
    "with space",
    "ünïcödé 猫",
    'it\'s "quoted"',
    "<script>alert(1)<",
    "=2+3",
    "-dash",
    "a%20b",
]
PHOTOGRAPHS = (
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
    "skimage/data/astronaut.png",
    "skimage/data/chelsea.png",
    "skimage/data/coffee.png",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/ihc.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/retina.jpg",
    "skimage/data/rocket.jpg",
    "skimage/data/camera.png",
    "skimage/data/brick.png",
    "skimage/data/coins.png",
    "skimage/data/grass.png",
    "skimage/data/gravel.png",
    "skimage/data/moon.png",
)


def photographs() -> list[Image.Image]:
    """Those of the packages that are installed."""
    found = []
    for name in PHOTOGRAPHS:
        package, _, rest = name.partition("/")
        module = __import__(package)
        path = Path(module.__file__ or "").parent / rest
        if path.exists():
            found.append(Image.open(path).convert("RGB"))
    return found


def make_folder(folder: Path, files: int) -> None:
    """Crops of the photographs, and all that is odd."""
    random, sources = np.random.RandomState(0), photographs()
    for number in range(files):
        source = sources[number % len(sources)]
        side = random.randint(48, min(source.size) // 2)
        left, top = (random.randint(size - side) for size in source.size)
        crop = source.crop((left, top, left + side, top + random.randint(side // 2, side) + 1))
        crop.thumbnail((160, 160))
        path = folder / f"{number % 7}" / f"{number % 11}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        crop.save(path, quality=90)
    _odd(folder, sources)


def _odd(folder: Path, sources: list[Image.Image]) -> None:
    odd = folder / "odd ones"
    odd.mkdir()
    for number, (name, source) in enumerate(zip(NAMES, sources, strict=False)):
        source.crop((0, 0, 90 + number, 80)).save(odd / f"{name}.png")
    part = sources[0].crop((100, 100, 300, 260))
    part.convert("L").save(odd / "grey.jpg")
    part.convert("CMYK").save(odd / "ink.jpg")
    Image.fromarray(np.asarray(part.convert("L")).astype(np.uint16) * 257).save(odd / "deep.tif")
    part.resize((1, 1)).save(odd / "tiny.png")
    part.resize((9000, 7000)).save(odd / "huge.jpg")
    part.save(odd / "moving.gif", save_all=True, append_images=sources[1:3])
    part.putalpha(part.convert("L"))
    part.save(odd / "clear.png")
    turned = sources[3].crop((0, 0, 120, 80))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(odd / "turned.jpg", exif=exif)
    text = PngImagePlugin.PngInfo()
    text.add_text("note", "same pixels, other bytes")
    turned.save(odd / "first.png")
    turned.save(odd / "second.png", pnginfo=text)
    shutil.copy(odd / "first.png", odd / "third.png")
    for name, content in {
        "broken.jpg": b"\xff\xd8\xff nothing",
        "empty.png": b"",
        "page.png": b"<html>404</html>",
        "cut.png": (odd / "first.png").read_bytes()[:3000],
        "notes.txt": b"x",
        "film.mp4": b"x",
        "Thumbs.db": b"x",
        ".hidden.png": b"x",
    }.items():
        (odd / name).write_bytes(content)
    (odd / "gone.png").symlink_to(odd / "nowhere.png")


def command(folder: Path, run: str, arguments: argparse.Namespace, workers: int) -> list[str]:
    """What chooses from the folder."""
    options = {
        "DATASET.ROOT_DIR": folder / "photos",
        "RUN_DIR": folder / run,
        "MODEL.ARCH": arguments.arch,
        "MODEL.PRETRAIN_PATH": arguments.weights,
        "DATASET.IMAGE_SIZE": arguments.side,
        "USL.NUM_SELECTED_SAMPLES": arguments.budget,
        "DATALOADER.WORKERS": workers,
        "DATALOADER.BATCH_SIZE": 16 if arguments.smoke else 128,
    }
    words = [str(word) for pair in options.items() for word in pair]
    return [sys.executable, "usl-images.py", "--cfg", "configs/images_usl.yaml", "--opts", *words]


def killed(words: list[str], run: Path) -> None:
    """Start a run and kill it once it has saved some features."""
    process = subprocess.Popen(words, cwd=STAGE, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(run.glob("*.partial/00*.json")):
        time.sleep(0.01)
    process.kill()
    process.wait()


def main() -> None:
    """Make the folder, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--arch", default="pixels")
    parser.add_argument("--weights", default="", help="a file, where the encoder needs one")
    parser.add_argument("--side", type=int, default=32, help="what the encoder sees, in pixels")
    parser.add_argument("--budget", type=int, default=100)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.files, arguments.budget = 250, 20
    folder = arguments.folder.resolve()
    if not (folder / "photos").exists():
        make_folder(folder / "photos", arguments.files)
    rows, lists = [], []
    for run, workers, kill in (
        ("first", 2, False), ("again", 2, False), ("threads", 5, False), ("killed", 2, True),
    ):  # fmt: skip
        words = command(folder, run, arguments, workers)
        begin = time.perf_counter()
        if kill:
            killed(words, folder / run)
        subprocess.run(words, cwd=STAGE, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begin
        lists.append((folder / run / "selected.csv").read_bytes())
        rows.append({"run": run, "seconds": round(seconds, 1), "same": lists[-1] == lists[0]})
    print(pd.DataFrame(rows).to_string(index=False))
    if len(set(lists)) > 1:
        sys.exit("the picks differ")


if __name__ == "__main__":
    main()
