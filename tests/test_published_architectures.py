"""D-FINE-N and RT-DETRv2-r18 as they are published, but with random weights and small images.

Killed in the middle of an epoch, resumed, validated, used and exported.
"""

import json
from pathlib import Path

import pytest
import torch
from conftest import (
    ROOT,
    assert_same_run,
    load_state,
    read_results,
    resume_train,
    run_killed,
    run_train,
    train_args,
    write_tiny,
)

transformers = pytest.importorskip("transformers", minversion="5.18")
pytest.importorskip("scipy")

from test_kills import assert_same_outputs, launcher, run_checked, run_with_kills  # noqa: E402
from test_transformers_detectors import (  # noqa: E402
    dfine_config,
    save_checkpoint,
    save_folder,
)

import detect  # noqa: E402
import export  # noqa: E402
import val  # noqa: E402
from models import build_model, load  # noqa: E402
from utils.metrics import METRICS  # noqa: E402

NAMES = {k: f"class{k}" for k in range(80)}  # as many as in COCO


def dfine_n() -> object:
    """Return D-FINE-N's configuration: HGNetV2-B0, strides 16 and 32, three layers of 128."""
    stem, widths, mids = [3, 16, 16], [64, 256, 512, 1024], [16, 32, 64, 128]
    backbone = transformers.HGNetV2Config(
        stem_channels=stem,
        stage_in_channels=[stem[-1], *widths[:-1]],
        stage_mid_channels=mids,
        stage_out_channels=widths,
        stage_num_blocks=[1, 1, 2, 1],
        stage_downsample=[False, True, True, True],
        stage_light_block=[False, False, True, True],
        stage_kernel_size=[3, 3, 5, 5],
        stage_numb_of_layers=[3] * 4,
        hidden_sizes=[128, 256, 512, 1024],
        use_learnable_affine_block=True,
        out_indices=[3, 4],
    )
    return transformers.DFineConfig(
        backbone_config=backbone,
        num_feature_levels=2,
        feat_strides=[16, 32],
        encoder_in_channels=widths[2:],
        encoder_hidden_dim=128,
        encoder_ffn_dim=512,
        encode_proj_layers=[1],
        decoder_in_channels=[128, 128],
        d_model=128,
        decoder_ffn_dim=512,
        decoder_layers=3,
        decoder_n_points=[6, 6],
        depth_mult=0.5,
        hidden_expansion=0.34,
        id2label=NAMES,
    )


def rtdetrv2_r18() -> object:
    """Return RT-DETRv2-S's configuration: ResNet-18, strides 8, 16 and 32, three layers of 256."""
    widths = [64, 128, 256, 512]
    backbone = transformers.RTDetrResNetConfig(
        layer_type="basic",
        depths=[2] * 4,
        hidden_sizes=widths,
        out_features=["stage2", "stage3", "stage4"],
    )
    return transformers.RTDetrV2Config(
        backbone_config=backbone,
        encoder_in_channels=widths[1:],
        hidden_expansion=0.5,
        decoder_layers=3,
        id2label=NAMES,
    )


# The millions of parameters are those of the publishers' tables.
ARCHITECTURES = {"dfine-n": (dfine_n, 256, 3.7), "rtdetrv2-r18": (rtdetrv2_r18, 128, 20)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Return by name where each architecture is, with random weights."""
    hub = tmp_path_factory.mktemp("hub")
    return {name: save_folder(hub / name, make()) for name, (make, *_) in ARCHITECTURES.items()}


@pytest.fixture
def data(tmp_path) -> Path:
    """Return a data.yaml with small objects, such as random weights predict."""
    data = write_tiny(tmp_path / "data", train=4, val=3)
    for file in (tmp_path / "data" / "labels").rglob("*.txt"):
        centers = [line.split()[:3] for line in file.read_text().splitlines()]
        file.write_text("".join(f"{k} {x} {y} 0.1 0.125\n" for k, x, y in centers))
    return data


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_number_of_parameters(name, folders):
    _, imgsz, millions = ARCHITECTURES[name]
    model = build_model(f"transformers/{folders[name]}", 80)
    count = sum(
        parameter.numel()
        for key, parameter in model.named_parameters()
        if "denoising" not in key  # used in training only
    )
    assert round(count / 1e6, 1 if millions < 10 else 0) == millions
    assert model.min_size == imgsz


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_killed_run_is_bitwise_identical_and_used(name, folders, data, tmp_path):
    options = {
        "model": f"transformers/{folders[name]}",
        "weights": "DEFAULT",
        "data": data,
        "epochs": 2,
        "imgsz": ARCHITECTURES[name][1],
        "batch_size": 2,
        "noplots": True,
    }
    assert run_train(**options, project=tmp_path) == 0
    run_killed(1, 1, **options, project=tmp_path / "killed")
    killed = tmp_path / "killed" / "exp"
    progress = load_state(killed)["progress"]
    assert (progress["epoch"], progress["batch"]) == (1, 1)
    assert resume_train(killed) == 0
    assert_same_run(tmp_path / "exp", killed)

    best = str(killed / "weights" / "best.pt")
    command = ["--weights", best, "--device", "cpu"]
    assert val.main([*command, "--noplots", "--project", str(tmp_path / "val")]) == 0
    metrics = json.loads((tmp_path / "val" / "exp" / "metrics.json").read_text())["all"]
    row = max(read_results(killed), key=lambda row: float(row["metrics/mAP50-95"]))
    expected = {key: float(row[f"metrics/{key}"]) for key in METRICS}
    assert expected["mAP50"] > 0
    assert {key: metrics[key] for key in METRICS} == pytest.approx(expected, rel=1e-3, abs=1e-6)

    source = ["--source", str(data.parent / "images" / "val" / "0.png"), "--save-json"]
    assert detect.main([*command, *source, "--conf", "0", "--project", str(tmp_path / "det")]) == 0
    predictions = json.loads((tmp_path / "det" / "exp" / "predictions.json").read_text())
    assert len(predictions) == 300  # one for each query


def test_killed_run_with_a_timm_backbone_is_bitwise_identical(tiny, tmp_path):
    pytest.importorskip("timm")
    options = {"data": tiny, "epochs": 2, "backbone": "timm/lcnet_050", "noplots": True}
    assert run_train(**options, project=tmp_path) == 0
    run_killed(1, 2, **options, project=tmp_path / "killed")
    killed = tmp_path / "killed" / "exp"
    assert load_state(killed)["progress"]["batch"] == 2
    assert resume_train(killed) == 0
    assert_same_run(tmp_path / "exp", killed)
    assert load(killed / "weights" / "best.pt").config["backbone"] == "timm/lcnet_050"


@pytest.mark.kills
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_onnx_equals_the_model(name, folders, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    onnxruntime = pytest.importorskip("onnxruntime")
    imgsz = ARCHITECTURES[name][1]
    path = tmp_path / "best.pt"
    model = save_checkpoint(folders[name], path, imgsz)
    assert export.main(["--weights", str(path)]) == 0
    session = onnxruntime.InferenceSession(path.with_suffix(".onnx"))
    images = torch.rand(1, 3, imgsz, imgsz, generator=torch.Generator().manual_seed(0))
    results = [*map(torch.from_numpy, session.run(None, {"images": images.numpy()}))]
    with torch.no_grad():
        expected = model.predict(images)
    result, other = (torch.cat((b[0], 1000 * s[0]), 1) for b, s in (expected, results))
    distances = torch.cdist(result, other, p=torch.inf)
    # Without training queries are close, so that rounding decides which of the last are taken.
    for nearest in (distances.amin(0), distances.amin(1)):
        assert (nearest < 0.05).float().mean() > 0.98


@pytest.mark.kills
def test_killed_run_of_two_processes_is_bitwise_identical(tmp_path):
    """A D-FINE of few layers, and images without boxes."""
    data = write_tiny(tmp_path / "data", train=12, val=5)
    for i in range(0, 12, 2):
        (tmp_path / "data" / "labels" / "train" / f"{i}.txt").write_text("")
    folder = save_folder(tmp_path / "hub", dfine_config())
    model = {"model": f"transformers/{folder}", "weights": "DEFAULT"}
    args = train_args(**model, data=data, epochs=5)
    command = [*launcher(2), ROOT / "train.py", *args, "--project", tmp_path / "whole"]
    run_checked(command)
    run_with_kills(args, tmp_path, ["warm-up", "training"], world_size=2)
    assert_same_outputs(tmp_path / "whole" / "exp", tmp_path / "exp")
