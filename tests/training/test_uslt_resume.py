"""Training of USL-T: killed and resumed, without labels, with a NaN, in two processes."""

import pytest
import torch
from helpers import in_processes, same
from toys.uslt import Training, outcomes

from usl import InputError
from usl.training.resume import CHECKPOINT


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What three epochs end with, of both forms."""
    ends = {}
    for imagenet in (False, True):
        folder = tmp_path_factory.mktemp("whole")
        Training(folder, imagenet=imagenet, ema=0.0 if imagenet else 0.5).run()
        ends[imagenet] = torch.load(folder / CHECKPOINT)
    return ends


@pytest.mark.slow
@pytest.mark.parametrize("imagenet", [False, True])
@pytest.mark.parametrize("die_at", [1, 4, 8])
def test_killed_at_any_epoch_and_resumed(tmp_path, uninterrupted, imagenet, die_at):
    options = {"imagenet": imagenet, "ema": 0.0 if imagenet else 0.5}
    with pytest.raises(KeyboardInterrupt):
        Training(tmp_path, die_at=die_at, **options).run()
    Training(tmp_path, **options).run()
    same(uninterrupted[imagenet], torch.load(tmp_path / CHECKPOINT))


def test_labels_change_nothing_that_is_trained(uninterrupted, tmp_path):
    Training(tmp_path, labelled=False, ema=0.5).run()
    found = torch.load(tmp_path / CHECKPOINT)
    for key in ("model", "ema_model", "optimizer", "criterion_local", "val_predictions"):
        same(found[key], uninterrupted[False][key], key)


def test_a_loss_that_is_nan_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(InputError, match="the loss is nan before step 6; the last good checkpoint"):
        Training(tmp_path, spoil_at=4).run()
    kept = torch.load(tmp_path / CHECKPOINT)
    assert kept["step"] == 3 and all(torch.isfinite(v).all() for v in kept["model"].values())


def test_a_checkpoint_within_an_epoch_is_never_of_a_nan(tmp_path):
    with pytest.raises(InputError, match="the loss is nan before step 2; the last good checkpoint"):
        Training(tmp_path, spoil_at=1, save_every=1).run()
    kept = torch.load(tmp_path / CHECKPOINT)
    assert kept["step"] == 1 and all(torch.isfinite(v).all() for v in kept["model"].values())


@pytest.mark.slow
def test_two_processes_nearly_equal_one(tmp_path):
    # Images, views, partners, masks and counts are the same, and each process computes the losses
    # of the whole batch. Batch norm and the gradients add up in another order (float32), and later
    # steps enlarge that: measured 6e-7 on weights and averages, 0 where the backbone is frozen.
    # Adam divides by the size of the gradient, so where that is nearly 0 more can come of it.
    both = in_processes(tmp_path / "worker.py", 2, outcomes)
    for (two_row, two), (one_row, one) in zip(both, outcomes(), strict=True):
        assert two_row == pytest.approx(one_row, rel=1e-5)
        for name, values in one.items():
            assert two[name] == pytest.approx(values, rel=1e-4, abs=1e-4), name
