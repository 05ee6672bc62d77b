"""`--batch-size auto`: the number that fits, found without a GPU by saying what one would have said."""

import pytest
import torch
from conftest import write_tiny

import train
from utils.auto_batch import largest_fitting_batch
from utils.errors import UserError


def test_the_largest_that_fits():
    assert largest_fitting_batch(lambda count: 500 + 70 * count, 500 + 70 * 123.5) == 123
    asked = []

    def small(count):
        asked.append(count)
        if count > 4:
            raise torch.cuda.OutOfMemoryError("no room")
        return 1000 * count

    assert largest_fitting_batch(small, 6500) == 6 and asked == [1, 2, 4, 8]


@pytest.mark.parametrize("room", [0, 400])
def test_none_that_fits(room):
    with pytest.raises(UserError, match="--batch-size auto: not even one picture"):
        largest_fitting_batch(lambda count: 500 + 70 * count, room)


def test_on_a_processor_it_is_refused(tmp_path, capsys):
    data = write_tiny(tmp_path / "tiny")
    arguments = ["--data", str(data), "--batch-size", "auto", "--imgsz", "64", "--device", "cpu"]
    assert train.main([*arguments, "--project", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert (
        error
        == "train.py: --batch-size auto: measures the memory of a GPU, and this run is on cpu; give a number\n"
    )
    assert not (tmp_path / "runs").exists()
