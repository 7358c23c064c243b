"""The same picks on the nodes of a Ray cluster, also when one of them goes."""

import shutil
import socket
import sys
from operator import mul

import numpy as np
import pytest
import torch
from helpers import features, kill_script

from usl import InputError, Regularizer
from usl.data.datasets import open_dataset
from usl.encoders.registry import Request, build_encoder
from usl.engines import ray as engine_module
from usl.engines.ray import Ray
from usl.geometry.kmeans import kmeans
from usl.geometry.neighbors.exact import find_neighbors
from usl.geometry.points import Points, check_budget
from usl.inference import extract
from usl.selectors.usl import pick

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = pytest.mark.slow
ROWS, IMAGES, PICKS = 700, 3001, 30


@pytest.fixture(scope="module")
def cluster():
    """Two nodes on this machine, with a core each."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def expected():
    points = Points(features("sphere", IMAGES, 8))
    return selection(points)


def selection(points):
    """All that a selection computes of points."""
    near = find_neighbors(points, 20, backend="compiled")
    clusters = kmeans(points, PICKS, seed=0, nonempty=PICKS)
    picks = [
        pick(points, near.density, clusters.labels, PICKS, Regularizer(horizon=horizon)).indices
        for horizon in ("dist", "num")
    ]
    return [*near.columns, clusters.labels, clusters.centroids, *picks]


def equal(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_two_nodes_choose_what_one_machine_chooses(cluster, expected):
    assert equal(selection(Points(features("sphere", IMAGES, 8), engine=engine(cluster))), expected)


def test_fashion_mnist_whole_is_chosen_from_alike_on_one_node_and_on_two(cluster, tmp_path):
    try:
        images = open_dataset("fashion-mnist", tmp_path).images
    except InputError:
        pytest.skip("Fashion-MNIST is not here")
    # Every other row and column; a prime number of images, and of rows of a task.
    x = (images[:59_999, ::2, ::2] / np.float32(255)).reshape(59_999, -1)

    def chosen(points):
        density = find_neighbors(points, 20).density
        labels = kmeans(points, PICKS, seed=0, iterations=15, nonempty=PICKS).labels
        picks = pick(points, density, labels, PICKS, Regularizer(rounds=3)).indices
        return density, labels, picks

    expected = chosen(Points(x))
    assert equal(chosen(Points(x, engine=Ray(cluster.address, rows=16_411))), expected)
    ray.shutdown()
    alone = Cluster(True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        assert equal(chosen(Points(x, engine=Ray(alone.address, rows=40_009))), expected)
    finally:
        ray.shutdown()
        alone.shutdown()


@pytest.mark.parametrize("step", ["neighbours", "k-means"])
def test_a_node_that_goes_in_the_middle_changes_nothing(cluster, expected, step):
    node = cluster.add_node(num_cpus=1)
    # The first results of neighbours, or of the first iterations of k-means.
    losing = Losing(cluster, node, after=2 if step == "neighbours" else 5 + 8)
    points = Points(features("sphere", IMAGES, 8), engine=losing)
    assert equal(selection(points), expected)
    assert losing.node is None


class Losing(Ray):
    """Loses a node after some results."""

    def __init__(self, cluster, node, *, after):
        super().__init__(cluster.address, rows=ROWS)
        self.cluster, self.node, self.left = cluster, node, after

    def map(self, function, tasks):
        for result in super().map(function, tasks):
            self.left -= 1
            if not self.left:
                self.cluster.remove_node(self.node)
                self.node = None
            yield result


@pytest.mark.parametrize("step", ["neighbours", "features"])
def test_a_killed_driver_goes_on_from_its_shards(cluster, expected, tmp_path, caplog, step):
    shards = tmp_path / "shards"
    caplog.set_level("INFO", "usl")

    def done():
        return len(list(shards.glob("0*.json")))

    np.save(tmp_path / "x.npy", features("sphere", IMAGES, 8))
    given = (step, cluster.address, shards, tmp_path / "x.npy")
    kill_script("tests/engines/driver.py", *given, when=lambda: done() >= 2)
    count = done()
    ours = Ray(cluster.address, rows=200)
    if step == "neighbours":
        points = Points(features("sphere", IMAGES, 8), engine=ours)
        assert equal(find_neighbors(points, 20, shards=shards).columns, expected[:3])
        whole = -(-IMAGES // 200)
    else:
        images = open_dataset("digits", tmp_path)
        encoder = build_encoder("pixels", Request(images=images))
        given = {"preprocess": encoder.preprocess, "batch_size": 5, "quiet": True}
        found = extract(encoder.network, images, shards=shards, engine=ours, **given)
        assert np.allclose(found, extract(encoder.network, images, **given), atol=1e-5)
        whole = -(-len(images) // 40)
    assert 2 <= count < whole
    assert f"{step}: {count} of {whole} shards are there already" in caplog.text


def engine(cluster):
    return Ray(cluster.address, rows=ROWS)


def test_a_script_chooses_the_same_on_a_cluster(cluster, script, tmp_path, capsys):
    np.save(tmp_path / "x.npy", features("sphere", 900, 8))
    given = ("FEATURES.PATH", tmp_path / "x.npy", "USL.NUM_SELECTED_SAMPLES", 20)
    for engine in ("local", "ray"):
        address = ("ENGINE_ADDRESS", cluster.address) if engine == "ray" else ()
        options = (*given, "RUN_DIR", tmp_path / engine, "ENGINE", engine, *address)
        script("selective_labeling/usl-features.py", "--opts", *options)
    said = "neighbours, clusters and picks on a Ray cluster (nodes: 2, cores of a task: 1)"
    assert said in capsys.readouterr().err
    for name in ("selected.csv", "ind_knns.npy", "cluster_labels_20_1.npy"):
        one, other = (tmp_path / engine / name for engine in ("local", "ray"))
        assert one.exists() and one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("kind", ["folder", "zip", "shards", "memory"])
def test_images_are_embedded_on_the_nodes(cluster, image_folder, tmp_path, kind):
    if kind == "memory":
        images = open_dataset("digits", tmp_path).part(0, 50)
    else:
        images = open_dataset("images", as_archive(image_folder, tmp_path / f"x.{kind}"), workers=1)
    encoder = build_encoder("pixels", Request(images=images))
    options = {"preprocess": encoder.preprocess, "batch_size": 3, "quiet": True}
    ours = extract(encoder.network, images, **options)
    theirs = extract(encoder.network, images, engine=engine(cluster), **options)
    assert len(ours) > 3 * 3 and np.allclose(ours, theirs, atol=1e-5)


def test_a_node_that_goes_while_images_are_embedded_changes_nothing(cluster, tmp_path):
    images = open_dataset("digits", tmp_path)
    encoder = build_encoder("pixels", Request(images=images))
    options = {"preprocess": encoder.preprocess, "batch_size": 20, "quiet": True}
    node = cluster.add_node(num_cpus=1)

    class Leaving(Ray):
        def pipeline(self, *given):
            for number, found in enumerate(super().pipeline(*given)):
                if number == 3:
                    cluster.remove_node(node)
                yield found

    theirs = extract(encoder.network, images, engine=Leaving(cluster.address, rows=ROWS), **options)
    assert np.allclose(theirs, extract(encoder.network, images, **options), atol=1e-5)


def test_an_image_that_cannot_be_read_is_an_error_of_this_machine(cluster, image_folder, tmp_path):
    images = open_dataset("images", as_archive(image_folder, tmp_path / "x.folder"), workers=1)
    (images.folder / images.paths[5]).write_bytes(b"no image")
    encoder = build_encoder("pixels", Request(images=images, skip_unreadable=True))
    options = {"preprocess": encoder.preprocess, "batch_size": 3, "engine": engine(cluster)}
    with pytest.raises(InputError, match=f"image .*{images.paths[5]}"):
        extract(encoder.network, images, **options)
    features = extract(encoder.network, images, skip_unreadable=True, **options)
    assert np.flatnonzero(np.isnan(features[:, 0])).tolist() == [5]


def as_archive(folder, path):
    """The images of a folder, in another place: a folder, an archive, or two archives."""
    if path.suffix == ".zip":
        return shutil.make_archive(str(path.with_suffix("")), "zip", folder / "train")
    if path.suffix == ".shards":
        path.mkdir()
        for kind in ("tar", "zip"):
            shutil.make_archive(str(path / kind), kind, folder / "train")
        return path
    return shutil.copytree(folder / "train", path)


def test_an_address_without_its_engine_is_an_error(script, tmp_path):
    options = ("FEATURES.PATH", tmp_path / "x.npy", "ENGINE_ADDRESS", "head:6379")
    np.save(tmp_path / "x.npy", features("sphere", 500, 8))
    expected = "ENGINE_ADDRESS is head:6379, and ENGINE local; choose ENGINE ray"
    with pytest.raises(InputError, match=expected):
        script("selective_labeling/usl-features.py", "--opts", *options)


def test_results_come_in_the_order_of_the_tasks(cluster):
    ours = engine(cluster)
    handle = ours.put(torch.arange(3.0))
    found = ours.map(mul, [(handle, 2), (torch.ones(1), 3), (ours.call(mul, 4, 5), 6)])
    assert [torch.as_tensor(t).tolist() for t in found] == [[0, 2, 4], [3], 120]
    assert ours.cut(0) == [(0, 0)] and ours.cut(1500) == [(0, 700), (700, 1400), (1400, 1500)]


def test_errors_of_a_task_are_those_of_this_machine(cluster):
    with pytest.raises(InputError) as error:
        list(engine(cluster).map(check_budget, [(3, 5), (9, 5)]))
    assert str(error.value) == "a budget of 9 picks from 5 images; choose 1 to 5"


def test_another_version_on_a_node_is_an_error(cluster, monkeypatch):
    monkeypatch.setattr(engine_module, "this_package", lambda: "0.0.1")
    with pytest.raises(InputError, match=r"a node of the cluster has usl \S+, and .* 0\.0\.1; ins"):
        list(engine(cluster).map(mul, [(1, 2)]))


def test_an_address_where_nothing_answers_is_an_error(cluster, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for given in (address, "nowhere", f"ray://{address}"):
        with pytest.raises(InputError, match=f"no Ray cluster .* answers at {given} "):
            Ray(given)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=f"no Ray cluster .* answers at {address} "):
        Ray()


def test_without_ray_an_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        InputError, match=r"`engine` ray is not installed: pip install 'ray\[data\]'"
    ):
        Ray()
