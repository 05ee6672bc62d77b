"""Batches of one image: trained, or refused before anything is written."""

import pytest
from conftest import assert_one_line_error, run_train, write_tiny

SSDLITE = "torchvision/ssdlite320_mobilenet_v3_large"


@pytest.mark.parametrize(
    "options",
    [
        {"imgsz": 32, "batch_size": 1},
        {"imgsz": "32-64", "batch_size": 1},
        {"imgsz": 32, "batch_size": 1, "freeze": "backbone"},
        {"imgsz": 320, "batch_size": 1, "model": SSDLITE},
    ],
)
def test_batch_norm_of_a_single_value_is_one_sentence(options, tmp_path, capsys):
    data = write_tiny(tmp_path / "tiny", train=3, val=1)
    assert run_train(data=data, epochs=1, project=tmp_path / "runs", **options) == 2
    size = str(options["imgsz"]).partition("-")[0]
    parts = (f"--batch-size {options['batch_size']}: ", f"--imgsz {size}", "at least 2 images")
    assert_one_line_error(capsys.readouterr().err, *parts)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("imgsz", "batch_size"), [(64, 1), (32, 3), (32, 2)])
def test_batches_that_batch_norm_can_use_are_trained(imgsz, batch_size, tmp_path):
    data = write_tiny(tmp_path / "tiny", train=3, val=1)
    options = {"imgsz": imgsz, "batch_size": batch_size, "noplots": True}
    assert run_train(data=data, epochs=1, project=tmp_path, **options) == 0
