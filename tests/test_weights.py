"""How tensors get into a model: from a checkpoint, and what fits."""

import pytest
import torch
from conftest import assert_one_line_error, run_train

from models import build_model
from models.weights import load_initial_weights
from options import parse_args
from utils.checkpoint import save_checkpoint
from utils.errors import UserError


def test_weights_that_other_tools_would_download(tiny, tmp_path, capsys):
    for name in ("yolov5s.pt", "yolo11n.pt"):
        assert run_train(data=tiny, weights=tmp_path / name, epochs=1, project=tmp_path) == 2
        message = f"--weights {name}: not found, and no weights are downloaded (leave --weights"
        assert_one_line_error(capsys.readouterr().err, message)


def test_load_initial_weights_takes_the_ema_tensors_that_fit(tmp_path):
    source, model = build_model("yolo-n", 5), build_model("yolo-n", 2)
    saved, before = source.state_dict(), {k: v.clone() for k, v in model.state_dict().items()}
    save_checkpoint({"ema": {"model": saved, "updates": 3}}, tmp_path / "best.pt")
    messages = load_initial_weights(model, str(tmp_path / "best.pt"), pretrained=False)
    after = model.state_dict()
    fitting = [key for key in before if saved[key].shape == before[key].shape]
    assert 0 < len(fitting) < len(before)
    for key, value in after.items():
        assert torch.equal(value, saved[key] if key in fitting else before[key]), key
    # Only the last convolutions depend on the classes: from 64 channels at each of 3 levels.
    assert len(before) - len(fitting) == 6
    total = sum(p.numel() for p in model.parameters())
    loaded = f"loaded {total - 3 * (64 + 1) * 2:,} of the model's {total:,} parameters"
    missing = f"(6 of {len([*model.parameters()])} tensors do not fit)"
    assert messages == [f"--weights {tmp_path / 'best.pt'}: {loaded} {missing}"]
    assert load_initial_weights(model, None, pretrained=False) == []


@pytest.mark.parametrize(
    ("saved", "rows", "message_end"),
    [
        (["cat", "Traffic_Light", "dog"], {0: 1, 2: 0}, "2 of 3 classes are kept, by name: "
         "traffic light, cat"),
        (["traffic light", "tree", "cat"], None, None),  # the same, in the same order
        (["a", "b", "c"], None, None),  # others, perhaps the same ones renamed: by position
        (["cat", "a", "b", "c", "d"], {2: 0}, "1 of 3 classes are kept, by name: cat"),
        (["traffic light"], {0: 0}, "1 of 3 classes are kept, by name: traffic light"),
    ],
)  # fmt: skip
def test_rows_of_classes_are_loaded_by_name(saved, rows, message_end, tmp_path):
    source, model = build_model("yolo-n", len(saved)), build_model("yolo-n", 3)
    for layer in (f"head.cls_branches.{level}.2.weight" for level in range(3)):
        assert not torch.equal(source.state_dict()[layer][:1], model.state_dict()[layer][:1])
    checkpoint = {"ema": {"model": source.state_dict()}, "class_names": saved}
    save_checkpoint(checkpoint, tmp_path / "best.pt")
    model.class_names = ("traffic light", "tree", "cat")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    (message,) = load_initial_weights(model, str(tmp_path / "best.pt"), pretrained=False)
    assert message.endswith(message_end or "parameters")
    for level in range(3):
        for kind in ("weight", "bias"):
            name = f"head.cls_branches.{level}.2.{kind}"
            there, here = source.state_dict()[name], model.state_dict()[name]
            for k in range(3):
                expected = before[name][k]
                if rows is None or k in rows:
                    expected = there[k if rows is None else rows[k]]
                assert torch.equal(here[k], expected), (name, k)


def test_classes_that_differ_in_case_only_keep_their_own_rows(tmp_path):
    """As the letters of number plates do."""
    source, model = build_model("yolo-n", 4), build_model("yolo-n", 5)
    checkpoint = {"ema": {"model": source.state_dict()}, "class_names": ["A", "a", "-", "_"]}
    save_checkpoint(checkpoint, tmp_path / "best.pt")
    model.class_names = ("_", "-", "a", "A", "B")
    load_initial_weights(model, str(tmp_path / "best.pt"), pretrained=False)
    name = "head.cls_branches.0.2.weight"
    assert torch.equal(model.state_dict()[name][:4], source.state_dict()[name].flip(0))
    same = build_model("yolo-n", 4)
    same.class_names = ("A", "a", "-", "_")
    (message,) = load_initial_weights(same, str(tmp_path / "best.pt"), pretrained=False)
    assert torch.equal(same.state_dict()[name], source.state_dict()[name])
    assert message.endswith(" parameters")


@pytest.mark.parametrize(("size", "width"), [("n", 64), ("s", 128)])
def test_class_count_changes_the_last_convolutions_only(size, width):
    one, many = (build_model(f"yolo-{size}", count).state_dict() for count in (1, 1000))
    different = {key for key in one if one[key].shape != many[key].shape}
    last = {f"head.cls_branches.{level}.2" for level in range(3)}
    assert different == {f"{name}.{kind}" for name in last for kind in ("weight", "bias")}
    assert all(one[f"{name}.weight"].shape == (1, width, 1, 1) for name in last)


@pytest.mark.parametrize(
    "source", [("yolo-s", 3), ("torchvision/ssdlite320_mobilenet_v3_large", 3)], ids=lambda s: s[0]
)
def test_load_initial_weights_refuses_those_of_another_model(source, tmp_path):
    model, other = build_model("yolo-n", 3), build_model(*source)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    save_checkpoint({"ema": {"model": other.state_dict()}}, tmp_path / "best.pt")
    total = sum(p.numel() for p in model.parameters())
    message = rf"best\.pt: [\d,]+ of the model's {total:,} parameters fit \(need .* --backbone\)$"
    with pytest.raises(UserError, match=message):
        load_initial_weights(model, str(tmp_path / "best.pt"), pretrained=False)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_weights_of_another_model_end_the_run(tiny, tmp_path, capsys):
    save_checkpoint({"ema": {"model": build_model("yolo-s", 2).state_dict()}}, tmp_path / "s.pt")
    assert run_train(data=tiny, weights=tmp_path / "s.pt", project=tmp_path / "runs") == 2
    assert_one_line_error(capsys.readouterr().err, "s.pt: ", "parameters fit")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("state", [{}, {"ema": {}}, {"ema": 3}, {"ema": {"model": [1, 2]}}])
def test_load_initial_weights_names_a_checkpoint_without_weights(state, tmp_path):
    save_checkpoint(state, tmp_path / "best.pt")
    with pytest.raises(UserError, match=r"best\.pt: holds no weights that this version can read"):
        load_initial_weights(build_model("yolo-n", 2), str(tmp_path / "best.pt"), False)


@pytest.mark.parametrize(
    ("argv", "hyp"),
    [
        ([], "hyp.yaml"),
        (["--model", "dfine-n"], "hyp.yaml"),
        (["--model", "dfine-n", "--weights", "DEFAULT"], "finetune_detector.yaml"),
        (["--model", "dfine-n", "--weights", "DEFAULT", "--hyp", "my.yaml"], "my.yaml"),
        (["--weights", "DEFAULT", "--backbone", "torchvision/resnet18"], "finetune.yaml"),
        (["--pretrained", "--backbone", "torchvision/resnet18"], "finetune.yaml"),
        (["--weights", "lite0.safetensors", "--backbone", "torchvision/resnet18"], "finetune.yaml"),
        (["--weights", "runs/train/exp/weights/best.pt"], "hyp.yaml"),
    ],
)
def test_default_hyp_file_for_published_weights(argv, hyp):
    assert parse_args(argv)[0].hyp == hyp
