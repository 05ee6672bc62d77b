"""A hyp file of YOLOv5 keeps its schedule and augmentation, and lists what is not converted."""

from pathlib import Path

import pytest
from preloaded import run_python

from utils.errors import UserError
from utils.from_yolov5 import main
from utils.hyp import Hyp, load_hyp
from utils.lf import parse_lf

ROOT = Path(__file__).parents[1]
LOW = """# the keys and values of YOLOv5's hyp.scratch-low.yaml
lr0: 0.01
lrf: 0.05
momentum: 0.937
weight_decay: 0.0005
warmup_epochs: 3.0
warmup_momentum: 0.8
warmup_bias_lr: 0.1
box: 0.05
cls: 0.5
cls_pw: 1.0
obj: 1.0
obj_pw: 1.0
iou_t: 0.20
anchor_t: 4.0
fl_gamma: 0.0
hsv_h: 0.02
hsv_s: 0.6
hsv_v: 0.3
degrees: 0.0
translate: 0.2
scale: 0.4
shear: 0.0
perspective: 0.0
flipud: 0.1
fliplr: 0.4
mosaic: 1
mixup: 0.0
copy_paste: 0.0
"""


CONVERTED = {
    *("lrf", "warmup_epochs", "hsv_h", "hsv_s", "hsv_v"),
    *("translate", "scale", "flipud", "fliplr", "mosaic"),
}


def test_from_yolov5_converts_what_it_can_and_lists_the_rest(tmp_path):
    (tmp_path / "low.yaml").write_text(LOW)
    done = run_python(["-m", "utils.from_yolov5", tmp_path / "low.yaml"], cwd=ROOT)
    assert done.returncode == 0 and done.stderr == ""
    (tmp_path / "mine.yaml").write_text(done.stdout)
    hyp = load_hyp(tmp_path / "mine.yaml")
    assert (hyp.hue, hyp.saturation, hyp.brightness) == (0.02, 0.6, 0.3)
    assert (hyp.translate, hyp.scale) == (0.2, 0.4)
    assert (hyp.flipud, hyp.fliplr, hyp.mosaic) == (0.1, 0.4, 1.0)
    assert hyp.scheduler.name == "cawb" and hyp.scheduler.warmup_epoch == 3
    curve = parse_lf(hyp.scheduler.lf)
    for x in (0, 30, 75, 100):  # YOLOv5: (1 - x / epochs) * (1 - lrf) + lrf
        assert curve(x, 100) == pytest.approx((1 - x / 100) * 0.95 + 0.05)
    default = Hyp()
    assert (hyp.optimizer, hyp.lr0) == (default.optimizer, default.lr0)
    assert hyp.loss_weights == default.loss_weights

    listed = set()
    for line in done.stdout.partition("# Not converted:")[2].splitlines():
        listed |= {key.strip() for key in line.lstrip("# ").partition(":")[0].split(",")}
    for line in LOW.splitlines()[1:]:
        key = line.partition(":")[0]
        assert (key in listed) != (key in CONVERTED), key


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lrf: fast\n", "lrf: found 'fast'"),
        ("lrf: 2\n", "lrf: found 2"),
        ("hsv_h: 0.9\n", "h.yaml: hsv_h: found 0.9"),
        ("mosaic: [1]\n", "h.yaml: mosaic: found [1]"),
        ("lr0: 0.1: 2\n", "line 1, column 9"),
    ],
)
def test_from_yolov5_error_is_one_sentence(text, message, tmp_path, capsys):
    (tmp_path / "h.yaml").write_text(text)
    assert main([str(tmp_path / "h.yaml")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and str(tmp_path / "h.yaml") in error


def test_hyp_file_of_yolov5_names_the_converter(tmp_path):
    (tmp_path / "low.yaml").write_text(LOW)
    with pytest.raises(
        UserError, match=r"low\.yaml: found anchor_t, .* as in a hyp file of YOLOv5"
    ):
        load_hyp(tmp_path / "low.yaml")
    (tmp_path / "low.yaml").write_text("lr0: 0.01\nlrf: 0.1\nwarmup_epochs: 3.0\n")
    with pytest.raises(UserError, match=r"python -m utils\.from_yolov5"):
        load_hyp(tmp_path / "low.yaml")


def test_from_yolov5_lists_unknown_keys(tmp_path, capsys):
    (tmp_path / "h.yaml").write_text("strange: 3\n")
    assert main([str(tmp_path / "h.yaml")]) == 0
    assert "# strange: unknown key" in capsys.readouterr().out
