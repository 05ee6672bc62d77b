"""The hyp file: its commented default is the model's default, and every mistake is one sentence that names it."""

from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from utils.errors import UserError
from utils.hyp import SCHEDULER_BLOCKS, CawbHyp, Hyp, load_hyp
from utils.run_dir import RunDir

DEFAULT = Path(__file__).parents[1] / "hyp" / "hyp.yaml"


def test_the_default_file_says_every_key_and_is_the_default():
    assert load_hyp(DEFAULT) == Hyp()
    content = yaml.safe_load(DEFAULT.read_text())
    assert set(content) == set(Hyp.model_fields)
    assert set(content["scheduler"]) == set(CawbHyp.model_fields)


@pytest.mark.parametrize("model", [Hyp, CawbHyp])
def test_every_key_has_a_default_a_bound_and_a_description(model):
    for name, field in model.model_fields.items():
        assert not field.is_required() and field.description, name
        if field.annotation in (int, float):
            assert len(field.metadata) >= 2, name


@pytest.mark.parametrize(
    "block",
    [
        {"steps": [3, "66.5%"], "lf": "lambda x, y: 1 - x / y"},
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
def test_what_is_saved_is_read_again(block, tmp_path):
    hyp = Hyp(lr0=0.02, scheduler=block)
    RunDir(tmp_path).write_yaml(hyp=hyp.model_dump())
    assert load_hyp(tmp_path / "hyp.yaml") == hyp
    assert {key: value for key, value in hyp.scheduler if key in block} == block


def test_each_schedule_has_its_own_arguments_and_no_others():
    of_all = {"name", "warmup_epoch"}
    a_and_b = of_all | {"learning_rate_decay_a", "learning_rate_decay_b"}
    assert {name: set(model.model_fields) for name, model in SCHEDULER_BLOCKS.items()} == {
        "cawb": of_all | {"steps", "step_scale", "eta_min", "epoch_scale", "lf"},
        "constant": of_all,
        **dict.fromkeys(("poly", "caffe_poly", "exp", "discexp", "linear"), a_and_b),
        **dict.fromkeys(("manual", "pass_manual"), of_all | {"learning_rate_args"}),
    }


def test_numbers_as_people_write_them(tmp_path):
    (tmp_path / "h.yaml").write_text("lr0: 1e-3\nweight_decay: 5E-4\nbox: 7\nscale: .25\n")
    hyp = load_hyp(tmp_path / "h.yaml")
    assert (hyp.lr0, hyp.weight_decay, hyp.box, hyp.scale) == (1e-3, 5e-4, 7.0, 0.25)


def test_a_pair_of_numbers_is_no_time_of_day(tmp_path):
    (tmp_path / "h.yaml").write_text("scheduler: {name: manual, learning_rate_args: 1000:1.0}\n")
    assert load_hyp(tmp_path / "h.yaml").scheduler.learning_rate_args == "1000:1.0"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lr: 0.1", "'lr0'"), ("momentun: 0.9", "'momentum'"), ("zzz: 1", "known keys: "),
        ("scheduler: {warmup_epochs: 3}", "'warmup_epoch'"),
        ("scheduler: {name: cosine}", "name: found 'cosine', allowed are cawb"),
        ("scheduler: {name: 3}", "scheduler: name: found 3"), ("scheduler: 3", "scheduler: found 3"),
        ("scheduler: {name: poly, steps: [3]}", "unknown key 'scheduler: steps'.*learning_rate_decay_a"),
        ("scheduler: {name: poly, learning_rate_decay_a: 1}", "'scheduler: learning_rate_decay_b' is missing"),
        ("scheduler: {name: exp, learning_rate_decay_a: .inf, learning_rate_decay_b: 1}", "decay_a: found inf.*finite"),
        ("scheduler: {name: manual, learning_rate_args: '10:1,x'}", "scheduler: learning_rate_args: found 'x', need pairs"),
        ("scheduler: {name: manual, learning_rate_args: '10:1,5:2'}", "must rise"),
        ("scheduler: {steps: [0%]}", "found '0%'"), ("scheduler: {steps: [100%]}", "found '100%'"),
        ("scheduler: {steps: [0.5]}", "found 0.5"),
        ("scheduler: {steps: [33%, true]}", "steps: 1: found True"), ("scheduler: {steps: 50%}", "list"),
        ("scheduler: {steps: ['1e1%']}", "found '1e1%'"), ("scheduler: {steps: [-3]}", "found -3"),
        ("lr0: fast", "lr0: found 'fast'"), ("lr0: true", "lr0: found True"), ("lr0: -1", "greater than 0"),
        ("lr0: .nan", "finite"),
        ("lr0: .inf", "finite"), ("mosaic: 1.5", "mosaic: found 1.5"), ("optimizer: lion", "optimizer: found 'lion'"),
        ("accumulate: 1.5", "accumulate"),
        ("scheduler: {steps: [0]}", "steps"), ("scheduler: {lf: 'lambda x: x'}", "two arguments"),
        ("scheduler: {lf: \"lambda x, y: __import__('os')\"}", "__import__"), ("lr0: 0.1\nlr0: 0.2", "line 2.*twice"),
        ("lr0: [1", "line"),
        ("[1, 2]", "key: value"), ("!!python/object/apply:os.system ['true']", "line 1"), ("lr0:\n\t- 1", "line 2"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(tmp_path, text, says):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        load_hyp(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message


def test_what_grows_when_it_is_read_is_refused_at_once(tmp_path):
    """A billion laughs in nine lines, a list in a list in a list, and a value as long as its file."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in pairwise("abcdefghi")
    )
    for text, says in (
        (bomb, "line 4, column 8: more than 20 aliases"),
        ("lr0: " + "[" * 5000, "nested too deeply"),
    ):
        (tmp_path / "bomb.yaml").write_text(text)
        with pytest.raises(UserError, match=says):
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
