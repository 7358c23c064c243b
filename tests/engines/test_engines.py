"""Picks do not depend on where, and in how many pieces, they are computed."""

import json
import pickle

import numpy as np
import pytest
import torch
from helpers import features

from usl import InputError, Regularizer, select
from usl.engines import local
from usl.engines.local import LOCAL, Local, cuts, mapped
from usl.engines.registry import ENGINES, engine_named
from usl.geometry.hierarchy import hierarchical_kmeans
from usl.geometry.kmeans import kmeans
from usl.geometry.neighbors.cells import search_cells
from usl.geometry.neighbors.exact import find_neighbors
from usl.geometry.neighbors.search import BACKENDS, search
from usl.geometry.points import Points
from usl.selectors.usl import pick


class Pieces(Local):
    """Runs each task on what travels: nothing but the bytes of its arguments."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.tasks = rows, 0

    def put(self, value):
        return Handle(pickle.dumps(value))

    def call(self, function, *arguments):
        self.tasks += 1
        sent = pickle.loads(pickle.dumps((function, arguments)))
        return self.put(
            sent[0](*(pickle.loads(a.data) if isinstance(a, Handle) else a for a in sent[1]))
        )

    def map(self, function, tasks):
        for arguments in tasks:
            yield pickle.loads(self.call(function, *arguments).data)

    def cut(self, n):
        return cuts(n, self.rows)

    steps = cut


class Handle:
    def __init__(self, data):
        self.data = data


def same(one, other):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


@pytest.fixture(params=["compiled", "torch"])
def way(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr("usl.geometry.jit.works", lambda: False)
    return request.param


@pytest.mark.parametrize("kind", ["sphere", "grid", "duplicates", "far"])
def test_a_selection_in_pieces_is_that_of_one(way, kind):
    x, engine = features(kind, 1511, 6), Pieces(400)
    ours, theirs = Points(x), Points(x, engine=engine)
    backend = "auto" if way == "torch" else "compiled"
    near = find_neighbors(ours, 20, backend=backend)
    assert same(near, find_neighbors(theirs, 20, backend=backend))
    clusters = kmeans(ours, 40, seed=2, nonempty=40)
    assert same(clusters, kmeans(theirs, 40, seed=2, nonempty=40))
    assert same(*(hierarchical_kmeans(points, 40, seed=2) for points in (ours, theirs)))
    for reg in (
        Regularizer(rounds=4),
        Regularizer(rounds=6, horizon="num", horizon_num=5, weight=2.0),
        Regularizer(rounds=6, horizon="num", horizon_num=5, exclude_same_cluster=True),
    ):
        one, other = (pick(p, near.density, clusters.labels, 40, reg) for p in (ours, theirs))
        assert torch.equal(one.indices, other.indices)
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-8, atol=0)
    # Each of the steps had a task for each piece, or more.
    assert engine.tasks > 3 * 4


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int32, ">f8"])
@pytest.mark.parametrize("backend", ["auto", "cells"])
def test_a_selection_from_files_is_that_in_memory(way, tmp_path, monkeypatch, dtype, backend):
    x = (50 * features("sphere", 1511, 6)).astype(dtype)
    monkeypatch.setattr("usl.geometry.neighbors.cells.POINTS", 60)
    in_files, sizes = Local(memory=0, folder=tmp_path / "scratch"), []
    monkeypatch.setattr(local, "mapped", lambda size, to: [sizes.append(size), mapped(size, to)][1])
    found = []
    for engine in (LOCAL, in_files):
        points = Points(x, engine=engine)
        near = find_neighbors(points, 20, backend=backend)
        clusters = kmeans(points, 40, seed=2, nonempty=40)
        picks = pick(points, near.density, clusters.labels, 40, Regularizer(rounds=3)).indices
        found.append([*near.columns, clusters.labels, clusters.centroids, picks])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    # The features, where they are copied, the lists, and what products take.
    kind = 4 if np.dtype(dtype).itemsize <= 4 and np.dtype(dtype).kind == "f" else 8
    wanted = [] if dtype == np.float32 else [1511 * 6 * kind]
    wanted += [1511 * 20 * 4, 1511 * 20 * 8, 1511 * 6 * 4] if way == "torch" else []
    assert set(wanted) <= set(sizes) and len(sizes) > 3
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_backend_finds_the_neighbours_of_some_rows(backend, dtype):
    x = features("sphere", 700, 5).astype(dtype)
    expected = find_neighbors(x, 9, backend="torch")
    for rows in (1, 130, 699):
        if rows == 1 and backend == "keops":
            # Compiles for each.
            continue
        assert same(expected, find_neighbors(Points(x, engine=Pieces(rows)), 9, backend=backend))


def test_cells_are_searched_in_pieces(monkeypatch):
    monkeypatch.setattr("usl.geometry.neighbors.cells.POINTS", 60)
    x = features("sphere", 700, 5)
    ours, theirs = (Points(x, engine=engine) for engine in (LOCAL, Pieces(130)))
    assert same(*(find_neighbors(points, 9, backend="cells") for points in (ours, theirs)))


class Halting(Local):
    """Stops after some tasks that search neighbours."""

    def __init__(self, after):
        super().__init__()
        self.left, self.done = after, 0

    def map(self, function, tasks):
        for arguments in tasks:
            if function in (search, search_cells):
                if self.left == self.done:
                    raise KeyboardInterrupt
                self.done += 1
            yield function(*arguments)

    def steps(self, n):
        return cuts(n, 150)


@pytest.mark.parametrize("backend", ["torch", "cells"])
def test_neighbours_that_were_stopped_go_on(monkeypatch, tmp_path, backend):
    monkeypatch.setattr("usl.geometry.neighbors.cells.POINTS", 40)
    monkeypatch.setattr("usl.geometry.neighbors.cells.TOGETHER", 4)
    x = features("sphere", 700, 5)
    expected = find_neighbors(x, 9, backend=backend)

    def tasks(source, after=-1):
        engine = Halting(after)
        options = {"backend": backend, "shards": tmp_path / "s", "source": {"a": source}}
        assert same(expected, find_neighbors(Points(x, engine=engine), 9, **options))
        return engine.done

    with pytest.raises(KeyboardInterrupt):
        tasks(1, after=2)
    assert [tasks(1), tasks(1), tasks(2)] == [3, 0, 5]
    # What was found in memory holds where features lie in a file.
    points = Points(x, engine=Local(memory=0, folder=tmp_path))
    options = {"backend": backend, "shards": tmp_path / "s", "source": {"a": 2}}
    monkeypatch.setattr("usl.engines.local.MANY", 99)
    monkeypatch.setattr("usl.engines.local.ROWS", 150)
    monkeypatch.setattr("usl.geometry.neighbors.exact.search", None)
    monkeypatch.setattr("usl.geometry.neighbors.exact.search_cells", None)
    assert same(expected, find_neighbors(points, 9, **options))


def test_a_folder_is_searched_on_the_engine(script, image_folder, tmp_path, monkeypatch):
    engine = Halting(-1)
    monkeypatch.setattr("usl.stages.inputs.engine_named", lambda *given, **options: engine)
    script(
        "selective_labeling/usl-images.py", "--opts", "DATASET.ROOT_DIR", image_folder / "train",
        "MODEL.ARCH", "pixels", "USL.NUM_SELECTED_SAMPLES", 3, "RUN_DIR", tmp_path / "run",
    )  # fmt: skip
    assert engine.done
    assert json.loads((tmp_path / "run" / "run.json").read_text())["engine"] == "this machine"


def test_points_travel_with_their_space():
    points = Points(features("far", 300, 4), length=2.0)
    sent = pickle.loads(pickle.dumps(points))
    assert torch.equal(sent.host, points.host) and sent.scale == points.scale
    assert torch.equal(sent.fast, points.fast) and sent.bound == points.bound
    assert sent.engine is LOCAL
    assert points.handle is points and "handle" not in vars(points)
    part = points.part(20, 50)
    assert torch.equal(part.fast, points.fast[20:50]) and points.part(0, 300) is points


def test_unknown_engines_are_errors_that_list_the_known():
    with pytest.raises(InputError, match=f"unknown `engine` 'rays'; .* {', '.join(ENGINES)}"):
        engine_named("rays")
    assert engine_named("local").share is None


def test_select_takes_points_of_an_engine():
    x, engine = features("sphere", 600, 4), Pieces(250)
    found = select(Points(x, engine=engine), 9, k=10)
    assert engine.tasks and torch.equal(found.picks, select(x, 9, k=10).picks)
