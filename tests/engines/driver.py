"""What a test kills in the middle: neighbours or features on a cluster, kept in shards."""

import sys
from pathlib import Path

import numpy as np

from usl.data.datasets import open_dataset
from usl.encoders.registry import Request, build_encoder
from usl.engines.ray import Ray
from usl.geometry.neighbors.exact import find_neighbors
from usl.geometry.points import Points
from usl.inference import extract

step, address, shards, table = sys.argv[1:]
engine = Ray(address, rows=200)
if step == "neighbours":
    find_neighbors(Points(np.load(table), engine=engine), 20, shards=Path(shards))
else:
    images = open_dataset("digits", shards)
    encoder = build_encoder("pixels", Request(images=images))
    options = {"preprocess": encoder.preprocess, "batch_size": 5, "engine": engine}
    extract(encoder.network, images, shards=Path(shards), **options)
