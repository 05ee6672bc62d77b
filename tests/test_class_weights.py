"""`class_weights` in a hyp file: factors of each class's part of the class loss."""

import json
import signal

import pytest
import torch
from conftest import (
    assert_one_line_error,
    assert_same_run,
    bitwise_equal,
    load_state,
    resume_train,
    run_train,
    signal_at,
    write_hyp,
)
from test_models import make_levels, make_points, make_targets

from models import build_model
from models.head import REG_MAX, Predictions
from models.loss import detection_loss, loss_sums
from utils.errors import UserError
from utils.hyp import Hyp, load_hyp


def test_run_with_class_weights_resumes_exactly(tiny, tmp_path):
    options = {"data": tiny, "epochs": 2, "batch_size": 6, "noplots": True, "project": tmp_path}
    hyp = write_hyp(tmp_path, "optimizer: sgd\nclass_weights: {class1: 3}\n")
    assert run_train(**options, hyp=hyp, name="whole") == 0
    with signal_at("batch", epoch=1):
        status = run_train(**options, hyp=hyp, name="cut")
    assert status == 128 + signal.SIGTERM
    assert resume_train(tmp_path / "cut") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")

    hyp = write_hyp(tmp_path, "optimizer: sgd\nclass_weights: [1, 1]\n")
    assert run_train(**options, hyp=hyp, name="ones") == 0
    assert run_train(**options, name="none") == 0
    assert_same_run(tmp_path / "ones", tmp_path / "none", ignore=("args", "hyp"))
    states = [load_state(tmp_path / name) for name in ("none", "whole")]
    assert not bitwise_equal(states[0]["model"], states[1]["model"])
    cls = [state["progress"]["history"][0]["train/cls"] for state in states]
    assert 1.5 < cls[1] / cls[0] < 2.5  # about (1 + 3) / 2


def test_compiled_loss_takes_class_weights():
    points, _ = make_points(96, 96)
    torch.manual_seed(1)
    logits = torch.randn(2, len(points), 4, REG_MAX), torch.randn(2, len(points), 3)
    predictions, targets = Predictions(*logits, make_levels(96, 96)), make_targets(4, 2)
    compiled = torch.compile(loss_sums, backend="eager", fullgraph=True, dynamic=True)
    weights = torch.tensor([0.5, 3.0, 1.0])
    for class_weights in (None, weights):
        expected = detection_loss(predictions, targets, class_weights=class_weights)
        losses = detection_loss(predictions, targets, compiled, class_weights)
        assert bitwise_equal(losses, expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[1, 2, 3]",
            "h.yaml: class_weights: found 3, need 2, one for each class (class0",
        ),
        ("{cat: 2}", "h.yaml: class_weights: cat: not a class of the dataset (choose from class0"),
        ("{class0: 0}", "h.yaml: class_weights: found {'class0': 0}, need a list with a number"),
        ("[1, .nan]", "class_weights: found [1, nan], need a list"),
        ("[]", "class_weights: found [], need a list"),
        ("2.0", "class_weights: found 2.0, need a list"),
        ("[true, 1]", "class_weights: found [True, 1], need a list"),
    ],
)
def test_class_weights_are_refused_in_a_sentence(text, message, tiny, tmp_path, capsys):
    hyp = write_hyp(tmp_path, f"class_weights: {text}\n")
    assert run_train(data=tiny, hyp=hyp, epochs=1, project=tmp_path) == 2
    assert_one_line_error(capsys.readouterr().err, message)


def test_class_weights_of_a_torchvision_detector_are_refused():
    model = build_model("torchvision/ssdlite320_mobilenet_v3_large", 2)
    with pytest.raises(UserError, match="class_weights: the losses of torchvision/ssdlite320"):
        model.set_class_weights([1.0, 2.0])


@pytest.mark.filterwarnings("error")
def test_class_weights_are_plain_data_and_not_in_the_weights(tmp_path):
    for text in ("{class1: 3}", "[0.5, 2]"):
        hyp = load_hyp(write_hyp(tmp_path, f"class_weights: {text}\n"))
        assert json.loads(json.dumps(hyp.model_dump())) == hyp.model_dump()
        assert Hyp(**hyp.model_dump()) == hyp
    model = build_model("yolo-n", 2)
    keys = model.state_dict().keys()
    model.set_class_weights(hyp.class_weights)
    assert model.state_dict().keys() == keys
    assert torch.equal(model.to("cpu").class_weights, torch.tensor([0.5, 2.0]))
