"""transformers' detectors in our loop: fidelity, training, exact resume, validation, detection."""

import copy
import json
import shutil
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import (
    assert_one_line_error,
    assert_same_run,
    load_state,
    read_results,
    resume_train,
    run_train,
    signal_at,
    write_hyp,
)
from torch.nn import functional as F
from torchvision.io import encode_png
from torchvision.ops import box_convert

transformers = pytest.importorskip("transformers", minversion="5.18")
pytest.importorskip("scipy")

from safetensors.torch import load_file, save_file  # noqa: E402

import detect  # noqa: E402
import export  # noqa: E402
import val  # noqa: E402
from models import build_model, load  # noqa: E402
from models.detector import Detector  # noqa: E402
from models.deterministic_sampling import DeterministicSampling  # noqa: E402
from models.freezing import freeze  # noqa: E402
from models.weights import load_initial_weights  # noqa: E402
from utils.checkpoint import FORMAT  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.metrics import METRICS  # noqa: E402

ADAMW = "optimizer: adamw\nlr0: 0.0005\nweight_decay: 0.0001\ngrad_clip: 0.1\nclose_mosaic: 1\n"
CLASSES = {0: "cat", 1: "Class1", 2: "dog", 3: "class0"}


def dfine_config(**options: object) -> object:
    """Return the smallest D-FINE: strides 16 and 32, two layers, 20 queries."""
    backbone = transformers.HGNetV2Config(
        hidden_sizes=[16, 16, 32, 32],
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 16, 16, 32],
        stage_mid_channels=[8, 8, 16, 16],
        stage_out_channels=[16, 16, 32, 32],
        stage_num_blocks=[1, 1, 1, 1],
        stage_downsample=[False, True, True, True],
        stage_light_block=[False, False, True, True],
        stage_kernel_size=[3, 3, 5, 5],
        stage_numb_of_layers=[1, 1, 1, 1],
        use_learnable_affine_block=True,
        out_indices=[3, 4],
    )
    tiny = {
        "backbone_config": backbone,
        "num_feature_levels": 2,
        "encoder_hidden_dim": 32,
        "encoder_ffn_dim": 32,
        "encoder_in_channels": [32, 32],
        "encode_proj_layers": [1],
        "encoder_attention_heads": 2,
        "feat_strides": [16, 32],
        "d_model": 32,
        "decoder_in_channels": [32, 32],
        "decoder_ffn_dim": 32,
        "decoder_n_points": [2, 2],
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "num_queries": 20,
        "num_denoising": 10,
        "depth_mult": 0.34,
        "hidden_expansion": 0.5,
        "id2label": CLASSES,
    }
    return transformers.DFineConfig(**tiny | options)


def rtdetr_config(**options: object) -> object:
    """Return a small RT-DETRv2 with the real one's strides 8, 16 and 32."""
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 16, 32],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    tiny = {
        "backbone_config": backbone,
        "encoder_hidden_dim": 32,
        "encoder_ffn_dim": 32,
        "encoder_in_channels": [16, 16, 32],
        "encoder_attention_heads": 2,
        "d_model": 32,
        "decoder_in_channels": [32, 32, 32],
        "decoder_ffn_dim": 32,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "num_queries": 20,
        "num_denoising": 10,
        "hidden_expansion": 0.5,
        "id2label": CLASSES,
    }
    return transformers.RTDetrV2Config(**tiny | options)


def detr_config(**options: object) -> object:
    """Return a small DETR, whose losses are not weighted and which has a class "no object"."""
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage4"],
    )  # fmt: skip
    tiny = {
        "backbone_config": backbone,
        "use_timm_backbone": False,
        "backbone": None,
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "num_queries": 20,
        "dropout": 0.0,
        "id2label": CLASSES,
    }
    return transformers.DetrConfig(**tiny | options)


CONFIGS = {"d_fine": dfine_config, "rt_detr_v2": rtdetr_config, "detr": detr_config}


def save_folder(folder: Path, config: object, factor: float = 1.5, **processor: object) -> Path:
    """Write a detector with random weights as publishers do; its weights are not those of a start.

    Larger ones, by `factor`, make its queries differ.
    """
    torch.manual_seed(5)
    model = transformers.AutoModelForObjectDetection.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.requires_grad:
                parameter.mul_(factor)
    model.save_pretrained(folder)
    image_processor = {"image_processor_type": "RTDetrImageProcessor", "do_normalize": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor | processor))
    return folder


@pytest.fixture(scope="session")
def dfine_folder(tmp_path_factory) -> Path:
    return save_folder(tmp_path_factory.mktemp("hub") / "tiny-dfine", dfine_config())


def batch() -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Return two images and their targets; the second has no box."""
    images = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[4.0, 4, 40, 50], [30, 10, 90, 60]])
    return images, [
        {"boxes": boxes, "labels": torch.tensor([0, 2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()},
    ]


@pytest.mark.parametrize("family", CONFIGS)
def test_losses_and_detections_equal_transformers(family, tmp_path):
    mean_std = {"do_normalize": True, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    normalizes = mean_std if family == "detr" else {}
    folder = save_folder(tmp_path / "hub", CONFIGS[family](auxiliary_loss=True), **normalizes)
    model = build_model(f"transformers/{folder}", 4)
    model.class_names = tuple(CLASSES.values())
    assert "those of 4 of 4 classes are kept" in model.load_pretrained()
    config = transformers.AutoConfig.from_pretrained(folder)
    if hasattr(config, "freeze_backbone_batch_norms"):
        config.freeze_backbone_batch_norms = False  # they learn in ours
    reference = transformers.AutoModelForObjectDetection.from_pretrained(folder, config=config)
    images, targets = batch()
    pixels = images
    if normalizes:
        mean, std = (
            torch.tensor(mean_std[f"image_{key}"])[:, None, None] for key in ("mean", "std")
        )
        pixels = (images - mean) / std
    pixels = pixels.contiguous(memory_format=torch.channels_last)  # as ours computes
    size = torch.tensor([128.0, 96, 128, 96])
    labels = [
        {"class_labels": t["labels"], "boxes": box_convert(t["boxes"], "xyxy", "cxcywh") / size}
        for t in targets
    ]
    torch.manual_seed(1)
    losses = model.train()(images, targets)
    torch.manual_seed(1)
    expected = reference.train()(pixels, labels=labels)
    assert torch.allclose(sum(losses.values()), expected.loss, rtol=1e-6)
    if family != "detr":
        assert losses.keys() >= {"vfl", "bbox", "giou"}
    kinds = losses.keys()

    processor = transformers.RTDetrImageProcessor()
    if family == "detr":
        processor = transformers.DetrImageProcessor()
    model.set_thresholds(0.0)
    with torch.no_grad():
        detections = model.eval()(images)
        expected = processor.post_process_object_detection(
            reference.eval()(pixels), threshold=0.0, target_sizes=[(96, 128)] * 2
        )
    for result, other in zip(detections, expected, strict=True):
        order = other["scores"].argsort(descending=True, stable=True)
        other = {key: value[order] for key, value in other.items()}
        boxes = other["boxes"].clamp(min=0).minimum(size)
        assert len(result["boxes"]) == 20
        assert torch.equal(result["scores"], other["scores"])
        assert torch.equal(result["labels"], other["labels"])
        assert torch.allclose(result["boxes"], boxes, atol=1e-4)

    # The same losses, and every parameter has a gradient, for which DDP would wait.
    losses = model.train()(images, [targets[1]] * 2)
    assert losses.keys() == kinds
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_training_exact_resume_validation_and_detection(dfine_folder, tiny, tmp_path, capsys):
    options = {
        "model": f"transformers/{dfine_folder}",
        "weights": "DEFAULT",
        "hyp": write_hyp(tmp_path, ADAMW),
        "data": tiny,
        "epochs": 2,
        "imgsz": "64-96",
        "project": tmp_path,
    }
    assert run_train(**options, name="whole") == 0
    assert "those of 2 of 2 classes are kept, by name: class0, class1" in capsys.readouterr().out
    with signal_at("batch", epoch=1, batch=0):  # answered after the batch
        assert run_train(**options, noplots=True, name="cut") == 128 + signal.SIGTERM
    hub = dfine_folder.rename(tmp_path / "elsewhere")  # from here on nothing asks it
    try:
        assert resume_train(tmp_path / "cut") == 0
        assert_same_run(tmp_path / "whole", tmp_path / "cut")
        state = load_state(tmp_path / "cut")
        assert state["environment"]["transformers"] == transformers.__version__

        best = str(tmp_path / "whole" / "weights" / "best.pt")
        assert load(best).class_names == ("class0", "class1")
        command = ["--weights", best, "--device", "cpu"]
        assert val.main([*command, "--noplots", "--project", str(tmp_path / "val")]) == 0
        metrics = json.loads((tmp_path / "val" / "exp" / "metrics.json").read_text())["all"]
        rows = read_results(tmp_path / "whole")
        row = max(rows, key=lambda row: float(row["metrics/mAP50-95"]))
        expected = {key: float(row[f"metrics/{key}"]) for key in METRICS}
        assert {key: metrics[key] for key in METRICS} == pytest.approx(expected, abs=1e-4)
        wide = tmp_path / "wide.png"  # padded to as many cells as the detector has queries
        write_image(wide, width=96, height=20)
        source = ["--source", str(wide), "--conf", "0", "--save-json"]
        assert detect.main([*command, *source, "--project", str(tmp_path / "det")]) == 0
        predictions = json.loads((tmp_path / "det" / "exp" / "predictions.json").read_text())
        assert len(predictions) == 40  # of 20 queries for 2 classes each: without NMS
    finally:
        hub.rename(dfine_folder)


def write_image(path: Path, width: int, height: int) -> None:
    noise = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    path.write_bytes(encode_png(noise).numpy().tobytes())


def test_rows_of_classes_of_the_same_name_are_kept(dfine_folder):
    donor = transformers.AutoModelForObjectDetection.from_pretrained(dfine_folder).state_dict()
    names = ("lamp", "DOG", "cat", "class_1", "fish")
    model = build_model(f"transformers/{dfine_folder}", len(names))
    model.class_names = names
    before = {k: v.clone() for k, v in model.detector.state_dict().items()}
    assert "those of 2 of 5 classes are kept, by name: DOG, cat" in model.load_pretrained()
    after = model.detector.state_dict()
    num_tensors = 0
    for key, value in donor.items():
        if value.shape == after[key].shape:
            assert torch.equal(after[key], value), key
            continue
        num_tensors += 1
        assert torch.equal(after[key][[1, 2]], value[[2, 0]])
        assert torch.equal(after[key][[0, 3, 4]], before[key][[0, 3, 4]])
    assert num_tensors > 4
    # As many classes as there, but others: their rows are not taken for those of these.
    model = build_model(f"transformers/{dfine_folder}", 4)
    model.class_names = ("a", "b", "c", "dog")
    before = model.detector.state_dict()["model.enc_score_head.weight"].clone()
    model.load_pretrained()
    after = model.detector.state_dict()["model.enc_score_head.weight"]
    assert torch.equal(after[:3], before[:3])
    assert torch.equal(after[3], donor["model.enc_score_head.weight"][2])


def test_rows_of_classes_of_a_checkpoint_are_kept_by_name(dfine_folder, tmp_path):
    """As many classes, in another order. The last row of some tensors is not one of a class."""
    names = ("cat", "dog", "bird")
    source, model = (build_model(f"transformers/{dfine_folder}", 3) for _ in range(2))
    for tensor in source.state_dict().values():
        tensor += torch.randn(()) if tensor.is_floating_point() else 0
    checkpoint = {"format": FORMAT, "ema": {"model": source.state_dict()}, "class_names": names}
    torch.save(checkpoint, tmp_path / "best.pt")
    model.class_names = ("bird", "Dog", "lamp")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    (message,) = load_initial_weights(model, str(tmp_path / "best.pt"), pretrained=False)
    assert message.endswith("; those of 2 of 3 classes are kept, by name: bird, Dog")
    saved, after, sizes = source.state_dict(), model.state_dict(), []
    for key, value in after.items():
        if not ("class_embed" in key or "enc_score_head" in key):
            assert torch.equal(value, saved[key]), key
            continue
        sizes.append(len(value))
        assert torch.equal(value[:2], saved[key][[2, 1]]), key
        assert torch.equal(value[2], before[key][2]), key
        assert torch.equal(value[3:], saved[key][3:]), key
    assert {*sizes} == {3, 4}


def test_weights_that_are_not_in_the_file_are_not_called_loaded(dfine_folder, tmp_path):
    folder = shutil.copytree(dfine_folder, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    save = partial(save_file, filename=folder / "model.safetensors", metadata={"format": "pt"})
    model = build_model(f"transformers/{folder}", 4)
    model.class_names = tuple(CLASSES.values())
    before = {k: v.clone() for k, v in model.detector.state_dict().items()}
    backbone = {k: v for k, v in weights.items() if k.startswith("model.backbone.")}
    save(backbone)
    message = model.load_pretrained()
    count = sum(p.numel() for p in model.detector.model.backbone.parameters())
    assert message.startswith(f"--weights DEFAULT: loaded {count:,} of the model's ")
    assert message.endswith("; those of the 4 classes are not in the file")
    after = model.detector.state_dict()
    assert all(torch.equal(after[k], backbone.get(k, before[k])) for k in before)
    save({f"other.{k}": v for k, v in weights.items()})
    with pytest.raises(UserError, match=r"--weights DEFAULT: 0 of .* parameters fit"):
        model.load_pretrained()


def test_new_classes_start_with_a_probability_of_0_01(dfine_folder):
    model = build_model(f"transformers/{dfine_folder}", 5)
    biases = model.detector.model.enc_score_head.bias
    assert torch.allclose(biases.sigmoid(), torch.tensor(0.01))
    norms = [m for m in model.modules() if "BatchNorm" in type(m).__name__]
    assert norms and all(isinstance(m, torch.nn.BatchNorm2d) for m in norms)  # not frozen


@pytest.mark.parametrize("family", ["d_fine", "rt_detr_v2"])
def test_boxes_are_float32_under_autocast(family, tmp_path):
    """In bfloat16 all coordinates above 64 of 128 pixels would be multiples of half a pixel."""
    model = build_model(f"transformers/{save_folder(tmp_path, CONFIGS[family]())}", 4)
    images, _ = batch()
    copied = copy.deepcopy(model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)  # a copy computes with its own modules
        with torch.autocast("cpu", torch.bfloat16):
            boxes = copied.detector(images).pred_boxes
            assert torch.is_autocast_enabled("cpu")
    assert boxes.isfinite().all() and boxes.dtype == torch.float32
    assert not torch.equal(boxes, boxes.bfloat16().float())


def test_losses_that_are_not_finite_are_returned(dfine_folder):
    """transformers raises ValueError; the training loop skips the step and names the images."""
    model = build_model(f"transformers/{dfine_folder}", 4).train()
    images, targets = batch()
    expected = model(images, targets)
    losses = model(images * torch.nan, targets)
    assert [*losses] == [*expected]
    assert not any(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_freeze_and_parameter_groups(dfine_folder):
    model = build_model(f"transformers/{dfine_folder}", 4)
    groups = model.param_groups()
    assert not groups["matrices"]  # never Muon
    assert sum(map(len, groups.values())) == sum(p.requires_grad for p in model.parameters())
    assert len(model.freezable_layers()) == 5  # the stem and four stages
    freeze(model, "backbone")
    backbone = model.detector.model.backbone
    assert not any(p.requires_grad for p in backbone.parameters())
    images, targets = batch()
    sum(model.train()(images, targets).values()).backward()


def test_sampling_equals_grid_sample_in_values_and_gradients():
    maps = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    grid = torch.empty(2, 6, 4, 2, dtype=torch.float64).uniform_(-1.3, 1.3).requires_grad_()
    expected = F.grid_sample(maps, grid, align_corners=False)
    weights = torch.randn_like(expected)
    with DeterministicSampling():
        values = F.grid_sample(maps, grid, align_corners=False)
        with pytest.raises(NotImplementedError, match="nearest"):
            F.grid_sample(maps, grid, mode="nearest")
    assert torch.allclose(values, expected, atol=1e-12)
    for result, other in zip(
        torch.autograd.grad((values * weights).sum(), (maps, grid)),
        torch.autograd.grad((expected * weights).sum(), (maps, grid)),
        strict=True,
    ):
        assert torch.allclose(result, other, atol=1e-12)


def edit_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("name", "edits", "parts"),
    [
        ("transformers//no/such/folder", {}, ["--model /no/such/folder: is not a directory"]),
        ("transformers/nobody/nothing", {}, ["--model nobody/nothing: cannot be read: "]),
        ("dfine-n", {}, ["--model ustc-community/dfine-nano-coco: cannot be read: "]),
        ("{folder}", {"model_type": "bert"}, ["model_type bert cannot be trained", "d_fine"]),
        ("{folder}", {"backbone_config": {"num_channels": 4}}, ["images of 4 channels, not of 3"]),
        ("{folder}", {"decoder_layers": "two"}, ["cannot be built: "]),
        ("{folder}", {"imgsz": 32}, ["--imgsz 32: the model needs at least 64 pixels"]),
        ("{folder}", {"weights": None}, ["--weights DEFAULT: ", "cannot be read: "]),
        ("{folder}", {"processor": None}, ["cannot be read: "]),
        ("{folder}", {"processor": {"do_normalize": True}}, ["found image_mean None", "three"]),
    ],
)
def test_error_messages(name, edits, parts, dfine_folder, tiny, tmp_path, capsys):
    folder = shutil.copytree(dfine_folder, tmp_path / "copy")
    options = {"weights": "DEFAULT", "imgsz": edits.pop("imgsz", 64)}
    if "weights" in edits:
        edits.pop("weights")
        (folder / "model.safetensors").unlink()
    if "processor" in edits:
        processor, file = edits.pop("processor"), folder / "preprocessor_config.json"
        file.write_text(json.dumps(processor)) if processor else file.unlink()
    edit_json(folder / "config.json", **edits)
    model = name.format(folder=f"transformers/{folder}")
    assert run_train(**options, model=model, data=tiny, project=tmp_path) == 2
    assert_one_line_error(capsys.readouterr().err, *parts)
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize("package", ["transformers", "scipy"])
def test_missing_package_is_one_sentence(package, tiny, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert run_train(model="dfine-n", data=tiny) == 2
    parts = "requires transformers >= 5.18 and scipy", "pip install 'transformers>=5.18' scipy"
    assert_one_line_error(capsys.readouterr().err, *parts)


def test_old_version_is_one_sentence(tiny, monkeypatch, capsys):
    monkeypatch.setattr("models.transformers_hub.version", lambda package: "5.9.1")
    assert run_train(model="dfine-n", data=tiny) == 2
    assert_one_line_error(capsys.readouterr().err, "but 5.9.1 is installed")


def test_a_hub_that_cannot_be_reached_is_said_at_once(monkeypatch, tiny, tmp_path, capsys):
    """Its library would try six times, and wait for half a minute in between."""
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # nobody listens there when it is closed
    address = f"http://127.0.0.1:{port}/{{repo_id}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    assert run_train(model="dfine-n", weights="DEFAULT", data=tiny, project=tmp_path) == 2
    assert not waits
    sentence = (
        "--model ustc-community/dfine-nano-coco: cannot be read: it is not in the hub's cache"
    )
    assert_one_line_error(capsys.readouterr().err, sentence, "the hub does not answer: ")


def save_checkpoint(folder: Path, path: Path, imgsz: int) -> Detector:
    """Write a checkpoint of the published weights in `folder`, and return its detector."""
    names = transformers.AutoConfig.from_pretrained(folder).id2label
    model = build_model(f"transformers/{folder}", len(names))
    model.class_names = tuple(names.values())
    model.load_pretrained()
    checkpoint = {
        "format": FORMAT,
        "model_config": model.config,
        "ema": {"model": model.state_dict()},
        "class_names": [*names.values()],
        "args": {"imgsz": imgsz, "data": "data.yaml"},
    }
    torch.save(checkpoint, path)
    return model.eval()


@pytest.mark.parametrize("family", ["d_fine", "detr"])
def test_exports_can_be_moved_to_another_device(family, tmp_path):
    folder = save_folder(tmp_path / "hub", CONFIGS[family]())
    path = tmp_path / "best.pt"
    model = save_checkpoint(folder, path, imgsz=96)
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        expected = model.predict(images)  # from constants as transformers makes them
    for format in ("torchscript", "torch_export"):
        assert export.main(["--weights", str(path), "--format", format]) == 0
    module = torch.jit.load(path.with_suffix(".torchscript"))
    graph = module.inlined_graph
    assert "Device" not in str(graph)
    constants = (node for node in graph.findAllNodes("prim::Constant"))
    tensors = [c.t("value") for c in constants if c.output().type().kind() == "TensorType"]
    # Scalars on the CPU can be combined with tensors on any device.
    assert all(tensor.ndim == 0 for tensor in tensors)
    program = torch.export.load(path.with_suffix(".pt2"))
    assert all(constant.ndim == 0 for constant in program.constants.values())
    assert not any("device" in node.kwargs for node in program.graph.nodes)
    for outputs in (module(images), program.module()(images)):
        for output, other in zip(outputs, expected, strict=True):
            assert torch.allclose(output, other, atol=1e-4)
    outputs = program.module().to("meta")(images.to("meta"))
    assert [tuple(output.shape) for output in outputs] == [(1, 20, 4), (1, 20, 4)]


def assert_onnx_agrees(model: Detector, file: Path, images: torch.Tensor) -> None:
    """The file predicts the boxes and scores of the model, in any order: queries may tie."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(file)
    results = [*map(torch.from_numpy, session.run(None, {"images": images.numpy()}))]
    with torch.no_grad():
        expected = model.predict(images)
    result, other = (torch.cat((b[0], 1000 * s[0]), 1) for b, s in (expected, results))
    distances = torch.cdist(result, other, p=torch.inf)
    assert distances.amin(0).max() < 0.05 and distances.amin(1).max() < 0.05


def test_onnx_equals_the_model(dfine_folder, tmp_path, capsys):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    torch.manual_seed(0)
    for family, num_cells in (("d_fine", 45), ("rt_detr_v2", 189)):
        # Without training queries tie, so that rounding decides which are taken, and in what order.
        folder = save_folder(tmp_path / family, CONFIGS[family](num_queries=num_cells))
        path = tmp_path / f"{family}.pt"
        model = save_checkpoint(folder, path, imgsz=96)
        assert export.main(["--weights", str(path)]) == 0
        capsys.readouterr()
        assert_onnx_agrees(model, path.with_suffix(".onnx"), torch.rand(1, 3, 96, 96))
        assert export.main(["--weights", str(path), "--dynamic"]) == 2
        error = capsys.readouterr().err
        assert_one_line_error(error, "--dynamic: not supported by", command="export.py")
