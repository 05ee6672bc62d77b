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
    write_hyp,
    write_tiny,
)

transformers = pytest.importorskip("transformers", minversion="5.18")
pytest.importorskip("scipy")

from test_kills import assert_same_outputs, launcher, run_checked, run_with_kills  # noqa: E402
from test_transformers_detectors import (  # noqa: E402
    assert_onnx_agrees,
    dfine_config,
    save_checkpoint,
    save_folder,
    write_image,
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


# Millions of parameters, as counted from the publishers' configurations; their tables say 4 and 20.
ARCHITECTURES = {"dfine-n": (dfine_n, 256, 3.8), "rtdetrv2-r18": (rtdetrv2_r18, 128, 20.2)}


@pytest.fixture
def data(tmp_path) -> Path:
    """Return a data.yaml of few images; in the one of validation objects are where anchors are.

    Those of both detectors' first level, at the image size of the test: an untrained detector
    finds some.
    """
    data = write_tiny(tmp_path / "data", train=3, val=1)
    image = tmp_path / "data" / "images" / "val" / "0.png"
    write_image(image, width=64, height=64)
    lines = [
        f"{(i + j) % 2} {(i + 0.5) / 16} {(j + 0.5) / 16} 0.05 0.05\n"
        for i in range(16)
        for j in range(16)
    ]
    (tmp_path / "data" / "labels" / "val" / "0.txt").write_text("".join(lines))
    return data


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_number_of_parameters(name):
    make, imgsz, millions = ARCHITECTURES[name]
    architecture = {"config": make().to_dict(), "mean": None, "std": None}
    model = build_model(name, 80, architecture=architecture)
    count = sum(p.numel() for p in model.parameters())
    assert abs(count / 1e6 - millions) < 0.2
    assert model.min_size == imgsz


@pytest.mark.parametrize("name", ["dfine-n", pytest.param("rtdetrv2-r18", marks=pytest.mark.kills)])
def test_killed_run_is_bitwise_identical_and_used(name, data, tmp_path):
    # At the start of training boxes are the anchors, and still about there at this rate.
    folder = save_folder(tmp_path / "hub", ARCHITECTURES[name][0](), factor=1)
    options = {
        "model": f"transformers/{folder}",
        "weights": "DEFAULT",
        "hyp": write_hyp(tmp_path, "optimizer: adamw\nlr0: 0.00001\ngrad_clip: 0.1\n"),
        "data": data,
        "epochs": 1,
        "imgsz": ARCHITECTURES[name][1],
        "batch_size": 1,
        "noplots": True,
    }
    assert run_train(**options, project=tmp_path) == 0
    run_killed(0, 1, **options, project=tmp_path / "killed")
    killed = tmp_path / "killed" / "exp"
    progress = load_state(killed)["progress"]
    assert (progress["epoch"], progress["batch"]) == (0, 1)
    assert resume_train(killed) == 0
    assert_same_run(tmp_path / "exp", killed)

    best = str(killed / "weights" / "best.pt")
    command = ["--weights", best, "--device", "cpu"]
    assert val.main([*command, "--noplots", "--project", str(tmp_path / "val")]) == 0
    metrics = json.loads((tmp_path / "val" / "exp" / "metrics.json").read_text())["all"]
    (row,) = read_results(killed)
    expected = {key: float(row[f"metrics/{key}"]) for key in METRICS}
    assert expected["mAP50"] > 0
    assert {key: metrics[key] for key in METRICS} == pytest.approx(expected, rel=0.01, abs=1e-5)

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
def test_onnx_equals_the_model(name, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    pytest.importorskip("onnxruntime")
    make, imgsz, _ = ARCHITECTURES[name]
    config = make()
    # As many queries as cells: without training rounding decides which are taken.
    config.num_queries = {"dfine-n": 16 * 16 + 8 * 8, "rtdetrv2-r18": 16 * 16 + 8 * 8 + 4 * 4}[name]
    folder = save_folder(tmp_path / "hub", config)
    path = tmp_path / "best.pt"
    model = save_checkpoint(folder, path, imgsz)
    assert export.main(["--weights", str(path)]) == 0
    images = torch.rand(1, 3, imgsz, imgsz, generator=torch.Generator().manual_seed(0))
    assert_onnx_agrees(model, path.with_suffix(".onnx"), images)


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
