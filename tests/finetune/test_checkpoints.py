"""Checkpoints: the last intact one is loaded, non-finite weights are refused, a full disk leaves no file."""

import resource
import shutil
import signal

import pytest
import torch
from torch import nn

from finetune.checkpoints import Checkpoints


class Part(nn.Module):
    """A part of a run's state, for a checkpoint."""

    def __init__(self, value: float):
        super().__init__()
        self.weight = nn.Parameter(torch.full((1000,), float(value)))


@pytest.fixture
def checkpoints(tmp_path):
    """Write two checkpoints, of steps 5 and 10, whose weights are these numbers."""
    checkpoints = Checkpoints(tmp_path)
    for step in (5, 10):
        checkpoints.save(step, {"model": Part(step)})
    return checkpoints


def taken(checkpoints):
    part = Part(0)
    return checkpoints.load({"model": part}), part.weight[0].item()


def truncated(data):
    return data[: len(data) // 2]


def flipped(data):
    """Return the data with one bit of the weights flipped."""
    offset = data.index(torch.full((2,), 10.0).numpy().tobytes())
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


def test_the_last_one_is_taken_and_two_are_kept(checkpoints):
    assert taken(checkpoints) == (10, 10)
    checkpoints.save(15, {"model": Part(15)})
    assert [path.name for path in checkpoints.paths()] == ["000000010.pt", "000000015.pt"]


@pytest.mark.parametrize(
    "damage",
    [truncated, flipped, lambda data: b"", lambda data: bytes(len(data))],
    ids=["truncated", "a bit flipped", "empty", "zeros"],
)
def test_of_an_unreadable_one_it_warns_and_takes_the_one_before(damage, checkpoints, caplog):
    last = checkpoints.paths()[-1]
    last.write_bytes(damage(last.read_bytes()))
    assert taken(checkpoints) == (5, 5)
    assert "000000010.pt: cannot be read, so the checkpoint before it is used" in caplog.text
    checkpoints.paths()[0].write_bytes(b"")
    with pytest.raises(ValueError, match="none of its 2 checkpoints can be read; --overwrite starts anew"):
        taken(checkpoints)


def test_what_a_crash_has_left_in_the_logs_is_cut_with_the_rows_of_later_steps(checkpoints):
    """After a power failure, a part of a file may be zeros."""
    log = checkpoints.output / "train.jsonl"
    log.write_bytes(b'{"step": 1}\n\0\0\0\n\xff\n{"a": 1}\n[2]\n{"step": 2}\n{"step": 3}\n{"ste')
    checkpoints.cut_logs(2)
    assert log.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_weights_that_are_not_finite_are_no_checkpoint(checkpoints, caplog):
    with pytest.raises(
        ValueError,
        match="after step 15, some weights are not finite, such as weight, so no checkpoint is written;",
    ):
        checkpoints.save(15, {"model": Part(float("nan"))})
    assert taken(checkpoints) == (10, 10)
    torch.save(
        {"step": 15, "model": Part(float("inf")).state_dict()}, checkpoints.folder / "000000015.pt"
    )  # as 0.1 wrote it
    assert taken(checkpoints) == (10, 10) and "its weights are not finite" in caplog.text


def test_a_disk_that_is_full_is_told_and_nothing_is_left_of_the_file(checkpoints):
    """A limit on file sizes makes writing fail, as a full disk does."""
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
    try:
        with pytest.raises(OSError, match="checkpoints: cannot be written: .*File too large"):
            checkpoints.save(15, {"model": Part(15)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in sorted(checkpoints.folder.iterdir())] == ["000000005.pt", "000000010.pt"]
    shutil.rmtree(checkpoints.folder)
    assert taken(checkpoints) == (0, 0)
