"""The cells of a comparison: each a selection and what it is worth, made once and kept."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from usl.artifacts import fingerprint
from usl.data.datasets import AnyDataset
from usl.data.folder import FolderDataset
from usl.errors import InputError
from usl.geometry.kmeans import Clusters, kmeans
from usl.geometry.neighbors.exact import find_neighbors
from usl.geometry.points import Points
from usl.inference import Features
from usl.metrics import linear_probe, weighted_knn
from usl.ranking import summarize
from usl.report.comparison import MEASURES, rank_texts, write_comparison_report
from usl.run import Expected, Run, log
from usl.selectors.registry import SELECTORS, Context, Shared, timed
from usl.stages import selection
from usl.stages.compare import Bench, Training
from usl.stages.usl import regularizer_of

COLUMNS = ["dataset", "selector", "budget", "seed", "accuracy", "knn", "classes", "seconds"]


@dataclass(frozen=True)
class Embedded:
    """A bench with features.

    Attributes
    ----------
    run : Run
        Of the bench.
    bench : Bench
    features, held_out : Features
        Of the images to choose from, and of those that test the choice.
    source : str
        A fingerprint of all that is the same for every selection.
    """

    run: Run
    bench: Bench
    features: Features
    held_out: Features
    source: str

    def vote(self, picks: np.ndarray | None = None) -> float:
        """Percent of the test images that a weighted 20-NN vote of picks, or of all, gets right."""
        rows = slice(None) if picks is None else picks
        values = (self.features.values[rows], self._labels(rows), self.held_out.values)
        answers = self.bench.test.labels
        return weighted_knn(*(torch.from_numpy(np.asarray(v)) for v in (*values, answers)))

    def cells(self) -> pd.DataFrame:
        """Make every selection and say what it is worth, or take both from an earlier run.

        Each is saved as a list for trainings; see :func:`list_of`.

        Returns
        -------
        DataFrame
            A row a selection, with ``COLUMNS``: the accuracy of a linear probe and of a vote of the
            picks, in percent; how many classes have a pick; seconds of choosing, with the
            neighbours and clusters that the rule needs, NaN for picks from elsewhere.
        """
        cfg, rows = self.bench.cfg, []
        points = Points(self.features.values, self.run.device)
        # What is prepared for any clustering is not to be the first selector's cost.
        kmeans(points, 1, seed=0, iterations=1, quiet=True)
        pairs = list(product(cfg.COMPARE.BUDGETS, cfg.USL.SEEDS))
        each = len(cfg.COMPARE.SELECTORS) + len(self.bench.listed[pairs[0]])
        with tqdm(total=len(pairs) * each, desc=self.bench.name, disable=None) as bar:
            for budget, seed in pairs:
                for selector, picks, worth in self._selections(points, budget, seed):
                    text = _list(self.bench.train, picks)
                    self.run.save_text(str(list_of(self.bench, selector, budget, seed)), text)
                    rows.append((self.bench.name, selector, budget, seed, *worth))
                    bar.update()
                log.info(
                    "%s: %d labels, seed %d: %d selections", self.bench.name, budget, seed, each
                )
        found = pd.DataFrame(rows, columns=COLUMNS).astype({"classes": int})
        return found.assign(seconds=found["seconds"].replace(0.0, np.nan).round(3))

    def _selections(
        self, points: Points, budget: int, seed: int
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """The title of each selector, its picks, and what they are worth."""
        context, made_from = self._context(points, budget)
        for name in self.bench.cfg.COMPARE.SELECTORS:
            selector = SELECTORS[name]
            source = {"selector": name, "version": selector.version, **made_from}
            if selector.seeded:
                source["seed"] = seed
            file = f"{budget}/{name}_seed{seed}" if selector.seeded else f"{budget}/{name}"
            choose = partial(timed, selector, context, budget, seed=seed)
            yield selector.title, *self._cell(file, budget, source, choose)
        for title, listed in self.bench.listed[budget, seed].items():
            source = {"picks": fingerprint(listed.numpy())}
            file = f"{budget}/{title.replace(' ', '-')}_seed{seed}"
            yield title, *self._cell(file, budget, source, partial(_given, listed))

    def _cell(
        self,
        name: str,
        budget: int,
        source: dict[str, Any],
        choose: Callable[[], tuple[Tensor, float]],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Picks (B,), and their accuracy, vote, classes and seconds, (4,), float64."""

        def compute() -> list[np.ndarray]:
            found, seconds = choose()
            picks = found.numpy()
            labels = self._labels(picks)
            accuracy = linear_probe(
                self.features.values[picks], labels,
                self.held_out.values, np.asarray(self.bench.test.labels),
            )  # fmt: skip
            classes = len(np.unique(labels))
            return [picks, np.array([accuracy, self.vote(picks), classes, seconds])]

        last = len(self.bench.train) - 1
        expected = [
            Expected(f"cells/{name}.npy", (budget,), kind="iu", low=0, high=last),
            Expected(f"cells/{name}_worth.npy", (4,), low=0.0),
        ]
        source = {"bench": self.source, **source}
        picks, worth = self.run.cached(expected, source, compute, by_budget=True, part=True)
        assert picks is not None and worth is not None
        return np.array(picks), np.array(worth)

    def _context(self, points: Points, budget: int) -> tuple[Context, dict[str, Any]]:
        """What selectors may look at, and the settings that it depends on."""
        cfg, n = self.bench.cfg, len(points)
        k = selection.neighbors_for(cfg.USL.KNN_K, n, budget)
        regularizer, iterations = regularizer_of(cfg.USL.REG), cfg.USL.K_MEANS_NITERS

        def density() -> list[np.ndarray]:
            with self.run.timed("neighbours"):
                before = self.run.timings.get("neighbours", 0.0)
                found = find_neighbors(points, k, backend=cfg.KNN.BACKEND).density.numpy()
            return [found, np.array([self.run.timings["neighbours"] - before])]

        def cluster(budget: int, seed: int) -> Clusters:
            count = selection.clusters_for(budget, n, self.bench.train.name)
            return kmeans(
                points, count, seed=seed, iterations=iterations, nonempty=budget, quiet=True
            )

        source = {"features": self.features.fingerprint, "k": k, "backend": cfg.KNN.BACKEND}
        expected = [
            Expected(f"density_{k}.npy", (n,), low=0.0),
            Expected(f"density_{k}_seconds.npy", (1,), low=0.0),
        ]
        dense, seconds = self.run.cached(expected, source, density, part=True)
        assert dense is not None and seconds is not None
        found = np.array(dense)
        shared = Shared({"density": torch.from_numpy(found)}, {"density": float(seconds[0])})
        labels = torch.from_numpy(self._labels())
        classes = len(self.bench.train.classes)
        context = Context(points, None, cluster, regularizer, iterations, labels, classes, shared)
        settings = {"iterations": iterations, "regularizer": vars(regularizer)}
        return context, {"density": fingerprint(found), **settings}

    def _labels(self, rows: Any = slice(None)) -> np.ndarray:
        labels: np.ndarray = np.asarray(self.bench.train.labels)[rows]
        return labels


def _list(images: AnyDataset, picks: np.ndarray) -> str:
    """Picks as a CSV; with the names of files, so that only the same images are trained on."""
    columns: dict[str, Any] = {"Index": picks}
    if isinstance(images, FolderDataset):
        columns["ImageID"] = [images.paths[index] for index in picks.tolist()]
    return pd.DataFrame(columns).to_csv(index=False)


def _given(picks: Tensor) -> tuple[Tensor, float]:
    return picks, 0.0


def embed(run: Run, bench: Bench) -> Embedded:
    """Features of the images to choose from, and of those that test the choice."""
    features = selection.image_features(run, bench.cfg, bench.encoder, bench.train)
    held_out = selection.image_features(
        run, bench.cfg, bench.encoder, bench.test, name="test_feats.npy"
    )
    labels = [fingerprint(np.asarray(images.labels)) for images in (bench.train, bench.test)]
    source = " ".join([features.fingerprint, held_out.fingerprint, *labels])
    return Embedded(run, bench, features, held_out, sha256(source.encode()).hexdigest())


def list_of(bench: Bench, selector: str, budget: int, seed: int | str) -> Path:
    """The list of a selection, below the run's folder."""
    name = f"{bench.train.name}_{selector.replace(' ', '-')}_seed{seed}.csv"
    return Path("lists", str(budget), name)


def train_on_picks(run: Run, bench: Bench) -> list[pd.DataFrame]:
    """Train on the picks that COMPARE.TRAIN names, by the stages' own commands.

    Each into a folder of its own for other picks and settings, so a training that has ended is only
    tested again, and one that was stopped goes on.

    Returns
    -------
    list of DataFrame
        A row a training: ``dataset``, ``training``, ``selector``, ``budget``, ``seed``,
        ``accuracy`` in percent, ``seconds``.

    Raises
    ------
    InputError
        A training failed, and said why.
    """
    train, results = bench.cfg.COMPARE.TRAIN, []
    titles = [SELECTORS[name].title for name in train.SELECTORS]
    titles += {title: None for listed in bench.listed.values() for title in listed}
    for title, training in bench.trainings.items():
        for selector, budget in product(titles, train.BUDGETS):
            log.info("%s: %s on the picks of %s, %d labels", bench.name, title, selector, budget)
            with run.timed(title):
                found = _trained(run, bench, title, training, selector, budget)
            names = {"dataset": bench.name, "training": title, "selector": selector}
            rows = found[["seed", "accuracy", "time"]].assign(**names, budget=budget)
            results.append(rows.rename(columns={"time": "seconds"}))
    return results


def _trained(
    run: Run, bench: Bench, title: str, training: Training, selector: str, budget: int
) -> pd.DataFrame:
    """Call the script of a training on the lists of a selector; its results."""
    assert run.folder is not None
    place, seeds = run.folder.absolute(), list(bench.cfg.COMPARE.TRAIN.SEEDS)
    lists = [(place / list_of(bench, selector, budget, seed)).read_text() for seed in seeds]
    key = sha256("".join([training.settings, *lists]).encode()).hexdigest()[:8]
    folder = place / "trainings" / "-".join([title, *selector.split(), str(budget), key])
    options = {
        f"{training.section}.LABELED_INDICES_PATH": place
        / list_of(bench, selector, budget, "{seed}"),
        f"{training.section}.SEEDS": seeds,
        "DATASET.ROOT_DIR": bench.cfg.DATASET.ROOT_DIR,
        "RUN_DIR": folder,
        "DEVICE": bench.cfg.DEVICE,
    }
    words = [str(training.script), "--cfg", str(training.config), "--opts"]
    words += [str(word) for pair in options.items() for word in pair]
    # Whoever ends this process by its number ends the training too.
    usual = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        done = subprocess.run(
            [sys.executable, *words], cwd=training.script.parent, stdout=subprocess.DEVNULL
        )
    finally:
        signal.signal(signal.SIGTERM, usual)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode == 2:
        raise InputError(f"{title} failed, as it says above: python {shlex.join(words)}")
    if done.returncode:
        raise RuntimeError(f"{title} ended with {done.returncode}: python {shlex.join(words)}")
    return pd.read_csv(folder / "results.csv")


def finish(
    run: Run,
    results: pd.DataFrame,
    ranks: pd.DataFrame,
    trainings: Sequence[pd.DataFrame],
    parts: Sequence[Embedded],
) -> None:
    """Print and write what a comparison of selectors has come to, and close its runs."""
    benches = [part.bench for part in parts]
    for part in parts:
        for step, seconds in part.run.timings.items() if part.run is not run else ():
            run.timings[f"{part.bench.name}: {step}"] = seconds
    for name, rows in results.groupby("dataset", sort=False):
        print(f"\n{name}: {MEASURES['accuracy']}\n{summarize(rows).to_string()}")
    trained = pd.concat(trainings) if trainings else None
    if trained is not None:
        for pair, rows in trained.groupby(["dataset", "training"], sort=False):
            print("\n{}: accuracy of {}, %".format(*pair), summarize(rows).to_string(), sep="\n")
    print(f"\n{rank_texts(ranks).to_string()}", flush=True)
    if run.folder is not None:
        path = run.folder / "report.html"
        images = " + ".join(f"{len(bench.train):,}" for bench in benches)
        write_comparison_report(
            path,
            results,
            ranks,
            trainings=trained,
            title=f"What choosing is worth: {len(ranks)} selectors",
            facts={
                "Data sets": ", ".join(bench.name for bench in benches),
                "Images to choose from": images,
                "Encoders": ", ".join(dict.fromkeys(str(bench.encoder) for bench in benches)),
                "Selections": len(results),
                "Device": str(run.device),
            },
            command=run.command,
            timings=run.timings,
        )
        print(f"report: {path}", flush=True)
    # The whole comes last: until then its parts keep what they have.
    for one in dict.fromkeys([*(part.run for part in parts), run]):
        one.finish()
