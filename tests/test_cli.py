"""What scripts say of errors; devices."""

import pytest

from usl import InputError
from usl.cli import choose_device, cli


def test_devices():
    assert str(choose_device("cpu")) == "cpu"
    for name in ("abacus", "cuda:77"):
        with pytest.raises(InputError, match=f"`device` {name} is not on this machine"):
            choose_device(name)


def test_cli_says_one_line(capsys):
    def bad():
        raise InputError("two\nlines")

    with pytest.raises(SystemExit) as left:
        cli(bad)
    assert left.value.code == 2 and capsys.readouterr().err == "error: two lines\n"

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        cli(interrupted)
    assert left.value.code == 130

    def bug():
        raise KeyError("a bug keeps its traceback")

    with pytest.raises(KeyError):
        cli(bug)
