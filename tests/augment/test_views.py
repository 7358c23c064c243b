"""Views of images in memory: as PIL's, whatever the batch."""

import torch
from helpers import CPU, preprocess, tensor, tiny_images
from oracles import moco_pil as pil

from usl.augment.moco import MocoTransform
from usl.augment.rng import Key
from usl.augment.views import Views
from usl.data.datasets import open_dataset


def test_views_are_pils_but_for_roundings():
    data = tiny_images(48, seed=0)
    seen, transform, rows = preprocess(data), MocoTransform(hue=0.0), torch.arange(48)
    key = Key(rows, 1, view=1)
    ours = Views(data, seen, device=CPU)(transform, rows, key)
    theirs = seen.normalize(pil.apply(data.images, transform.sample(key, (32, 32)), 32))
    assert ours.shape == (48, 3, 32, 32)
    assert (ours - theirs).abs().max() < 12 / 255 / seen.std[0]


def test_views_of_an_image_do_not_depend_on_its_batch():
    data = open_dataset("digits", "")
    views, rows = Views(data, preprocess(data), device=CPU), torch.arange(30)
    together = views(MocoTransform(), rows, Key(rows, 1, 2))
    alone = views(MocoTransform(), rows[7:9], Key(rows[7:9], 1, 2))
    torch.testing.assert_close(together[7:9], alone)


def test_the_key_says_how_and_the_rows_say_what():
    data = tiny_images(9)
    views, others = Views(data, preprocess(data), device=CPU), torch.tensor([8, 8])
    transform = MocoTransform(jitter=0, grey=0, blur=0)
    key = Key(torch.tensor([1, 2]), 0, view=3)
    ours = views(transform, others, key)
    expected = transform.apply(tensor(data.images[[8, 8]]), transform.sample(key, (32, 32)))
    assert torch.equal(ours, preprocess(data).normalize(expected))
    assert torch.equal(
        views.standard(others), preprocess(data).normalize(tensor(data.images[[8, 8]]))
    )
