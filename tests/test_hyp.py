"""The hyp file: its commented default is the model's default, and every mistake is one sentence that names it."""

from pathlib import Path

import pytest
import yaml

from utils.errors import UserError
from utils.hyp import Hyp, SchedulerHyp, load_hyp, save_hyp

DEFAULT = Path(__file__).parents[1] / "hyp" / "hyp.yaml"


def test_the_default_file_says_every_key_and_is_the_default():
    assert load_hyp(DEFAULT) == Hyp()
    content = yaml.safe_load(DEFAULT.read_text())
    assert set(content) == set(Hyp.model_fields)
    assert set(content["scheduler"]) == set(SchedulerHyp.model_fields)


@pytest.mark.parametrize("model", [Hyp, SchedulerHyp])
def test_every_key_has_a_default_a_bound_and_a_description(model):
    for name, field in model.model_fields.items():
        assert not field.is_required() and field.description, name
        if field.annotation in (int, float):
            assert len(field.metadata) >= 2, name


def test_what_is_saved_is_read_again(tmp_path):
    hyp = Hyp(lr0=0.02, scheduler=SchedulerHyp(steps=[3, 5], lf="lambda x, y: 1 - x / y"))
    save_hyp(hyp, tmp_path / "hyp.yaml")
    assert load_hyp(tmp_path / "hyp.yaml") == hyp


def test_numbers_as_people_write_them(tmp_path):
    (tmp_path / "h.yaml").write_text("lr0: 1e-3\nweight_decay: 5E-4\nbox: 7\n")
    hyp = load_hyp(tmp_path / "h.yaml")
    assert (hyp.lr0, hyp.weight_decay, hyp.box) == (1e-3, 5e-4, 7.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lr: 0.1", "'lr0'"), ("momentun: 0.9", "'momentum'"), ("zzz: 1", "known are"),
        ("scheduler: {warmup_epochs: 3}", "'warmup_epoch'"), ("scheduler: {name: cosine}", "scheduler: name"),
        ("scheduler: 3", "scheduler"),
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


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(UserError, match=str(path)):
            load_hyp(path)
