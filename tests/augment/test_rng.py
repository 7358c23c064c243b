"""What random numbers may depend on, and how they are distributed."""

import torch

from usl.augment.rng import Key, one_of, permutation, uniform


def test_draws_depend_on_seed_epoch_view_and_image_alone():
    def one(images, **changes):
        return uniform(Key(images, **({"seed": 1, "epoch": 2, "view": 0} | changes)), 7)

    images = torch.tensor([5, 900, 3, 59999])
    together = one(images)
    assert torch.equal(together[[2]], one(torch.tensor([3])))
    assert torch.equal(together.flip(0), one(images.flip(0)))
    for change in ({"seed": 2}, {"epoch": 3}, {"view": 1}):
        assert not (one(images, **change) == together).any()


def test_draws_are_uniform_and_unrelated():
    u = uniform(Key(torch.arange(5000), 0), 6).double()
    assert u.min() >= 0 and u.max() < 1
    for column in u.T:
        counts = torch.histc(column, 20, 0, 1)
        assert ((counts - 250) ** 2 / 250).sum() < 45  # chi squared, 19 degrees: p < 0.001
    related = torch.corrcoef(u.T) - torch.eye(6)
    assert related.abs().max() < 0.05
    assert torch.corrcoef(torch.stack([u[1:, 0], u[:-1, 0]]))[0, 1].abs() < 0.05


def test_each_epoch_has_an_order_of_its_own():
    first, second = (permutation(100, seed=0, epoch=e) for e in (0, 1))
    assert sorted(first.tolist()) == list(range(100)) and not torch.equal(first, second)
    assert torch.equal(first, permutation(100, seed=0, epoch=0))


def test_partners_are_neighbours_each_as_likely_as_another():
    neighbors = torch.arange(3000)[:, None] * 10 + torch.arange(7)
    images = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    drawn = []
    for epoch in range(10):
        partners = one_of(neighbors, Key(images, 4, epoch, 2))
        assert torch.equal(partners // 10, images)
        u = uniform(Key(images, 4, epoch, 2), 1)[:, 0].tolist()
        assert (partners % 10).tolist() == [int(x * 7) for x in u]
        drawn.append(partners % 10)
        alone = one_of(neighbors, Key(images[5:8], 4, epoch, 2))
        assert torch.equal(alone, partners[5:8])
    counts = torch.bincount(torch.cat(drawn), minlength=7).double()
    expected = 30_000 / 7
    # Chi-squared of 6 degrees of freedom: above 22.5 once in a thousand draws.
    assert (((counts - expected) ** 2) / expected).sum() < 22.5
    pairs = torch.bincount(drawn[0] * 7 + drawn[1], minlength=49).double()
    assert (((pairs - 3000 / 49) ** 2) / (3000 / 49)).sum() < 84
