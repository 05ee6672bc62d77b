"""The hyp file: its commented default is the model's, and every error is one sentence."""

import pickle
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from utils.errors import UserError
from utils.hyp import SCHEDULER_BLOCKS, CawbHyp, Hyp, LossWeights, _class_hyp, load_hyp
from utils.run_dir import RunDir
from utils.schedulers import BatchWarmup
from utils.yamlfile import validate

DEFAULT = Path(__file__).parents[1] / "hyp" / "hyp.yaml"


def test_default_file_has_every_key_and_the_defaults():
    assert load_hyp(DEFAULT) == Hyp()
    content = yaml.safe_load(DEFAULT.read_text())
    assert set(content) == set(Hyp.model_fields)
    assert set(content["scheduler"]) == set(CawbHyp.model_fields)


@pytest.mark.parametrize("model", [Hyp, CawbHyp])
def test_every_key_has_a_default_a_range_and_a_description(model):
    for name, field in model.model_fields.items():
        assert not field.is_required() and field.description, name
        if field.annotation in (int, float):
            assert len(field.metadata) >= 2, name


@pytest.mark.parametrize(
    "block",
    [
        {"steps": [3, "66.5%"], "lf": "lambda x, y: 1 - x / y", "per_batch": True},
        {
            "name": "poly",
            "learning_rate_decay_a": 1e-4,
            "learning_rate_decay_b": 0.75,
            "warmup_epoch": 3,
        },
        {"name": "linear", "learning_rate_decay_a": 1e-4},
        {"name": "manual", "learning_rate_args": "1000:1.0,2000:0.9"},
        {"name": "constant"},
    ],
)
def test_hyp_round_trip_through_a_file(block, tmp_path):
    hyp = Hyp(lr0=0.02, scheduler=block)
    RunDir(tmp_path).write_yaml(hyp=hyp.model_dump())
    assert load_hyp(tmp_path / "hyp.yaml") == hyp
    assert {key: value for key, value in hyp.scheduler if key in block} == block


@pytest.mark.parametrize("file", sorted(DEFAULT.parent.glob("*.yaml")), ids=lambda file: file.stem)
def test_hyp_can_be_sent_to_a_worker(file):
    """Where workers are not forked, all that the dataset holds is pickled."""
    hyp = load_hyp(file)
    assert pickle.loads(pickle.dumps(hyp)) == hyp


def test_each_schedule_has_only_its_own_arguments():
    common = {"name", "warmup_epoch"}
    a_and_b = common | {"learning_rate_decay_a", "learning_rate_decay_b"}
    assert {name: set(model.model_fields) for name, model in SCHEDULER_BLOCKS.items()} == {
        "cawb": common | {"steps", "step_scale", "eta_min", "epoch_scale", "lf", "per_batch"},
        "constant": common,
        **dict.fromkeys(("poly", "caffe_poly", "exp", "discexp", "linear"), a_and_b),
        **dict.fromkeys(("manual", "pass_manual"), common | {"learning_rate_args"}),
    }


def test_numbers_may_be_written_without_point_or_zero(tmp_path):
    (tmp_path / "h.yaml").write_text("lr0: 1e-3\nweight_decay: 5E-4\nbox: 7\nscale: .25\n")
    hyp = load_hyp(tmp_path / "h.yaml")
    assert (hyp.lr0, hyp.weight_decay, hyp.box, hyp.scale) == (1e-3, 5e-4, 7.0, 0.25)


def test_a_milestone_is_not_a_time_of_day(tmp_path):
    (tmp_path / "h.yaml").write_text("scheduler: {name: manual, learning_rate_args: 1000:1.0}\n")
    assert load_hyp(tmp_path / "h.yaml").scheduler.learning_rate_args == "1000:1.0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 0.1", "'lr0'"),
        ("momentun: 0.9", "'momentum'"),
        ("zzz: 1", "known keys: "),
        ("scheduler: {warmup_epochs: 3}", "'warmup_epoch'"),
        ("scheduler: {name: cosine}", "name: found 'cosine', allowed are cawb"),
        ("scheduler: {name: 3}", "scheduler: name: found 3"),
        ("scheduler: 3", "scheduler: found 3"),
        (
            "scheduler: {name: poly, steps: [3]}",
            "unknown key 'scheduler: steps'.*learning_rate_decay_a",
        ),
        (
            "scheduler: {name: poly, learning_rate_decay_a: 1}",
            "'scheduler: learning_rate_decay_b' is missing",
        ),
        (
            "scheduler: {name: exp, learning_rate_decay_a: .inf, learning_rate_decay_b: 1}",
            "decay_a: found inf.*finite",
        ),
        (
            "scheduler: {name: manual, learning_rate_args: '10:1,x'}",
            "scheduler: learning_rate_args: found 'x', need pairs",
        ),
        ("scheduler: {name: manual, learning_rate_args: '10:1,5:2'}", "counts must increase"),
        ("scheduler: {steps: [0%]}", "found '0%'"),
        ("scheduler: {steps: [100%]}", "found '100%'"),
        ("scheduler: {steps: [0.5]}", "found 0.5"),
        ("scheduler: {steps: [33%, true]}", "steps: 1: found True"),
        ("scheduler: {steps: 50%}", "list"),
        ("scheduler: {steps: ['1e1%']}", "found '1e1%'"),
        ("scheduler: {steps: [-3]}", "found -3"),
        (
            "{backbone_lr: 0.1, scheduler: {name: linear, learning_rate_decay_a: 1e-9}}",
            "backbone_lr: found 0.1, need 1 with the scheduler linear",
        ),
        ("lr0: fast", "lr0: found 'fast'"),
        ("lr0: true", "lr0: found True"),
        ("lr0: -1", "greater than 0"),
        ("lr0: .nan", "finite"),
        ("lr0: .inf", "finite"),
        ("mosaic: 1.5", "mosaic: found 1.5"),
        ("optimizer: lion", "optimizer: found 'lion'"),
        ("accumulate: 1.5", "accumulate"),
        ("scheduler: {steps: [0]}", "steps"),
        ("scheduler: {lf: 'lambda x: x'}", "two arguments"),
        ("scheduler: {lf: \"lambda x, y: __import__('os')\"}", "__import__"),
        ("lr0: 0.1\nlr0: 0.2", "line 2.*duplicate key 'lr0'"),
        ("lr0: [1", "line"),
        ("[1, 2]", "key: value"),
        ("!!python/object/apply:os.system ['true']", "line 1"),
        ("lr0:\n\t- 1", "line 2"),
        ("scheduler: {per_batch: 1}", "per_batch: found 1"),
        ("scheduler: {name: poly, per_batch: true}", "unknown key 'scheduler: per_batch'"),
    ],
)
def test_hyp_error_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_hyp(path)
    error = str(caught.value)
    assert error.startswith(str(path)) and "\n" not in error


def test_loss_weights_have_one_default_in_one_place():
    assert LossWeights().loss_weights == {"box": 7.5, "cls": 2.0, "dfl": 1.5}
    assert Hyp(cls=0.5).loss_weights == {"box": 7.5, "cls": 0.5, "dfl": 1.5}


class Wave(BatchWarmup):
    """A user's schedule."""

    def __init__(self, optimizer, epochs, batchs, period: int, height: float = 0.5, warmup_epoch=0):
        super().__init__(optimizer, epochs, batchs, warmup_epoch)


def test_a_class_has_the_arguments_of_its_constructor():
    block = _class_hyp("wave", Wave)
    assert list(block.model_fields) == ["name", "period", "height", "warmup_epoch"]
    assert dict(block(name="wave", period=3)) == {
        "name": "wave",
        "period": 3,
        "height": 0.5,
        "warmup_epoch": 0,
    }
    for content, message in (
        ({"name": "wave"}, "key 'period' is missing"),
        ({"name": "wave", "period": "3"}, "period: found '3'"),
        ({"name": "wave", "period": 3, "heigth": 1.0}, "unknown key 'heigth' \\(did you mean"),
        ({"name": "wave", "period": 3, "warmup_epoch": -1}, "warmup_epoch: found -1"),
    ):
        with pytest.raises(UserError, match=message):
            validate(content, block, "mine.yaml")


def test_a_class_needs_type_hints():
    class Untyped(BatchWarmup):
        def __init__(self, optimizer, epochs, batchs, height=0.5):
            super().__init__(optimizer, epochs, batchs)

    with pytest.raises(TypeError, match="scheduler wave: height of its class needs a type hint"):
        _class_hyp("wave", Untyped)


def test_files_that_grow_when_read_are_rejected(tmp_path):
    """Aliases of aliases, a list in a list in a list, and a value as long as its file."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in pairwise("abcdefghi")
    )
    for text, message in (
        (bomb, "line 4, column 8: more than 20 aliases"),
        ("lr0: " + "[" * 5000, "nested too deeply"),
    ):
        (tmp_path / "bomb.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            load_hyp(tmp_path / "bomb.yaml")
    (tmp_path / "long.yaml").write_text(f"lr0: {'x' * 1_000_000}")
    with pytest.raises(UserError, match="lr0: found 'xxx") as caught:
        load_hyp(tmp_path / "long.yaml")
    assert len(str(caught.value)) < 500


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(UserError, match=str(path)):
            load_hyp(path)
