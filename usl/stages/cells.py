"""The cells of a comparison: each a selection and what it is worth, made once and kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from usl.artifacts import fingerprint
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
from usl.stages.compare import Bench
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
    """

    run: Run
    bench: Bench
    features: Features
    held_out: Features

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
        pairs = list(product(cfg.COMPARE.BUDGETS, cfg.USL.SEEDS))
        each = len(cfg.COMPARE.SELECTORS) + len(self.bench.listed[pairs[0]])
        with tqdm(total=len(pairs) * each, desc=self.bench.name, disable=None) as bar:
            for budget, seed in pairs:
                for selector, picks, worth in self._selections(points, budget, seed):
                    text = pd.DataFrame({"Index": picks}).to_csv(index=False)
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
            drawn = {"seed": seed} if selector.seeded else {}
            file = f"{name}_seed{seed}" if selector.seeded else name
            yield (
                selector.title,
                *self._cell(
                    f"{budget}/{file}",
                    made_from | drawn | {"selector": name},
                    partial(timed, selector, context, budget, seed=seed),
                ),
            )
        for title, listed in self.bench.listed[budget, seed].items():
            source = {"picks": fingerprint(listed.numpy())}
            file = f"{budget}/{title.replace(' ', '-')}_seed{seed}"
            yield title, *self._cell(file, source, partial(_given, listed))

    def _cell(
        self, name: str, source: dict[str, Any], choose: Callable[[], tuple[Tensor, float]]
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

        expected = [
            Expected(
                f"cells/{name}.npy", (None,), kind="iu", low=0, high=len(self.bench.train) - 1
            ),
            Expected(f"cells/{name}_worth.npy", (4,), low=0.0),
        ]
        labels = [fingerprint(np.asarray(x.labels)) for x in (self.bench.train, self.bench.test)]
        tests = {"tests": self.held_out.fingerprint, "labels": labels}
        source = {"features": self.features.fingerprint, **tests, **source}
        picks, worth = self.run.cached(expected, source, compute, by_budget=True, quiet=True)
        assert picks is not None and worth is not None
        return np.array(picks), np.array(worth)

    def _context(self, points: Points, budget: int) -> tuple[Context, dict[str, Any]]:
        """What selectors may look at, and the settings that it depends on."""
        cfg, n = self.bench.cfg, len(points)
        k = selection.neighbors_for(cfg.USL.KNN_K, n, budget)
        regularizer = regularizer_of(cfg.USL.REG)

        def density() -> list[np.ndarray]:
            with self.run.timed("neighbours"):
                before = self.run.timings.get("neighbours", 0.0)
                found = find_neighbors(points, k, backend=cfg.KNN.BACKEND).density.numpy()
            return [found, np.array([self.run.timings["neighbours"] - before])]

        def cluster(budget: int, seed: int) -> Clusters:
            count = selection.clusters_for(budget, n, self.bench.train.name)
            iterations = cfg.USL.K_MEANS_NITERS
            return kmeans(
                points, count, seed=seed, iterations=iterations, nonempty=budget, quiet=True
            )

        source = {"features": self.features.fingerprint, "k": k, "backend": cfg.KNN.BACKEND}
        expected = [
            Expected(f"density_{k}.npy", (n,), low=0.0),
            Expected(f"density_{k}_seconds.npy", (1,), low=0.0),
        ]
        dense, seconds = self.run.cached(expected, source, density, quiet=True)
        assert dense is not None and seconds is not None
        shared = Shared(
            {"density": torch.from_numpy(np.array(dense))}, {"density": float(seconds[0])}
        )
        context = Context(
            points, None, cluster, regularizer, torch.from_numpy(self._labels()), shared
        )
        iterations = {"iterations": cfg.USL.K_MEANS_NITERS}
        return context, {"k": k, "regularizer": vars(regularizer), **iterations}

    def _labels(self, rows: Any = slice(None)) -> np.ndarray:
        labels: np.ndarray = np.asarray(self.bench.train.labels)[rows]
        return labels


def _given(picks: Tensor) -> tuple[Tensor, float]:
    return picks, 0.0


def embed(run: Run, bench: Bench) -> Embedded:
    """Features of the images to choose from, and of those that test the choice."""
    features = selection.image_features(run, bench.cfg, bench.encoder, bench.train)
    held_out = selection.image_features(
        run, bench.cfg, bench.encoder, bench.test, name="test_feats.npy"
    )
    return Embedded(run, bench, features, held_out)


def list_of(bench: Bench, selector: str, budget: int, seed: int | str) -> Path:
    """The list of a selection, below the run's folder."""
    name = f"{bench.train.name}_{selector.replace(' ', '-')}_seed{seed}.csv"
    return Path("lists", str(budget), name)


def train_on_picks(run: Run, bench: Bench) -> list[pd.DataFrame]:
    """Train on the picks that COMPARE.TRAIN names, by the stages' own commands, which are logged.

    Returns
    -------
    list of DataFrame
        A row a training: ``dataset``, ``training``, ``selector``, ``budget``, ``seed``,
        ``accuracy`` in percent, ``seconds``.

    Raises
    ------
    InputError
        Nothing is saved, so there are no lists; or a training failed, and said why.
    """
    train, results = bench.cfg.COMPARE.TRAIN, []
    titles = [SELECTORS[name].title for name in train.SELECTORS]
    if train.BUDGETS:
        titles += next(iter(bench.listed.values()))
    for training, (section, script, config) in bench.trainings.items():
        for selector, budget in product(titles, train.BUDGETS):
            if run.folder is None:
                raise InputError("COMPARE.TRAIN needs the lists in RUN_DIR; leave SKIP_SAVE False")
            words = [training, *selector.split(), str(budget)]
            folder = run.folder.absolute() / "trainings" / "-".join(words)
            lists = run.folder.absolute() / list_of(bench, selector, budget, "{seed}")
            options = {
                f"{section}.LABELED_INDICES_PATH": lists,
                f"{section}.SEEDS": list(train.SEEDS),
                "RUN_DIR": folder,
                "DEVICE": bench.cfg.DEVICE,
            }
            words = ["--cfg", str(config), "--opts"]
            words += [str(word) for pair in options.items() for word in pair]
            log.info("%s: %s on the picks of %s, %d labels", bench.name, training, selector, budget)
            with run.timed(training):
                done = subprocess.run(
                    [sys.executable, str(script), *words],
                    cwd=script.parent,
                    stdout=subprocess.DEVNULL,
                )
            if done.returncode:
                raise InputError(f"{training} failed, see above: {script} {' '.join(words)}")
            rows = pd.read_csv(folder / "results.csv")[["seed", "accuracy", "time"]]
            names = {"dataset": bench.name, "training": training, "selector": selector}
            results.append(rows.assign(**names, budget=budget).rename(columns={"time": "seconds"}))
    return results


def finish(
    run: Run,
    results: pd.DataFrame,
    ranks: pd.DataFrame,
    trainings: Sequence[pd.DataFrame],
    benches: Sequence[Bench],
) -> None:
    """Print and write what a comparison of selectors has come to."""
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
