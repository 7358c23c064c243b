"""From what a selection costs here to hours and dollars elsewhere; see scaling.py --plan."""

import io
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from usl.encoders.preprocess import Preprocess
from usl.geometry.coarse import ITERATIONS as COARSE_ITERATIONS
from usl.geometry.coarse import TRAINED_ON
from usl.geometry.neighbors.cells import POINTS, SEARCHED

# vCPUs, and dollars an hour: list prices on demand in us-east-1 and us-central1 in 2024, which
# change. A vCPU is taken to be as fast as one here.
MACHINES = {
    "AWS c7i.8xlarge": (32, 1.428),
    "AWS m7i.4xlarge": (16, 0.8064),
    "GCP n2-standard-32": (32, 1.5539),
}
IMAGES = (10**6, 10**7, 10**8)
# The photographs whose decoding is timed, and for how many seconds anything is.
SIDES, LASTING = (500, 375), 3.0


@dataclass(frozen=True)
class Costs:
    """vCPU-seconds: to decode an image, and to encode it; of a term of a product in each step.

    Neighbours by the name of their backend.
    """

    decode: float
    encode: float
    neighbours: dict[str, float]
    kmeans: float
    picks: float


FORMULA = """vCPU-seconds = N · (decode + encode) + N · M · D · neighbours
             + N · B · I · D · k-means + N · B · R · D · picks
N images, D dimensions, B labels, I iterations, R rounds; an image is compared with M others:
N / 2, as each pair is looked at once, or for cells 16 · 1024 in cells of about 1024, N / 1024 to
find its cell, and 10 / 16 as many to make them."""


def others(images: int, backend: str) -> float:
    """M."""
    if backend != "cells":
        return images / 2
    cells = images / POINTS
    return POINTS * SEARCHED + cells * (1 + COARSE_ITERATIONS * TRAINED_ON / POINTS)


def vcpu_seconds(
    costs: Costs, images: int, dim: int, labels: int, iterations: int, rounds: int, backend: str
) -> dict[str, float]:
    """The formula, step by step."""
    return {
        "decoding": images * costs.decode,
        "embedding": images * costs.encode,
        "neighbours": images * others(images, backend) * dim * costs.neighbours[backend],
        "k-means": images * labels * iterations * dim * costs.kmeans,
        "picks": images * labels * rounds * dim * costs.picks,
    }


def embedding_costs(arch: str) -> tuple[float, float, int]:
    """Seconds to decode a photograph for a network of timm, and to encode it, on a vCPU; its D."""
    import timm

    network = timm.create_model(arch, pretrained=False).eval()
    side = network.pretrained_cfg["input_size"][-1]
    preprocess = Preprocess(side, side, "center", "bicubic", (0.5,) * 3, (0.5,) * 3)
    noise = np.random.RandomState(0).randint(0, 255, (47, 62, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(SIDES).save(file, "JPEG")

    def decode() -> int:
        with Image.open(io.BytesIO(file.getvalue())) as picture:
            preprocess.resized(picture.convert("RGB"))
        return 1

    batch = torch.randn(8, 3, side, side)

    def encode() -> int:
        with torch.inference_mode():
            network(batch)
        return len(batch)

    return each(decode), each(encode) * torch.get_num_threads(), network.num_features


def each(work: Callable[[], int]) -> float:
    """Seconds that an image takes."""
    work()
    begin, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < LASTING:
        done += work()
    return spent / done


def show(costs: Costs, dim: int, labels: int, iterations: int, rounds: int) -> None:
    """Print the formula with its figures, and what it makes of many images."""
    given = (dim, labels, iterations, rounds)
    print(f"{FORMULA}\n\nmeasured here: {costs}\nD {dim}, B {labels}, I {iterations}, R {rounds}\n")
    steps = list(vcpu_seconds(costs, 1, *given, "auto"))
    titles = ["images", "neighbours by", *(f"{step}, vCPU-hours" for step in steps), *MACHINES]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for images in IMAGES:
        for backend in costs.neighbours:
            hours = [s / 3600 for s in vcpu_seconds(costs, images, *given, backend).values()]
            cells = [f"{some:,.3g}" for some in hours]
            for vcpus, price in MACHINES.values():
                alone = sum(hours) / vcpus
                cells.append(f"{alone:,.3g} h, ${alone * price:,.0f}")
            print(f"| {images:,} | {backend} | {' | '.join(cells)} |")
    print("\nHours and dollars are those of one machine; several take as many hours together.")
