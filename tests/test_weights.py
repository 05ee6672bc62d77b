"""How tensors get into a model: from a checkpoint, and what fits."""

import pytest
import torch

from models import build_model
from models.weights import load_initial_weights
from utils.checkpoint import save_checkpoint
from utils.errors import UserError


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
    loaded = f"loaded {len(fitting)} of the model's {len(before)} tensors"
    assert messages == [f"--weights {tmp_path / 'best.pt'}: {loaded}"]
    assert load_initial_weights(model, None, pretrained=False) == []


@pytest.mark.parametrize("state", [{}, {"ema": {}}, {"ema": 3}, {"ema": {"model": [1, 2]}}])
def test_load_initial_weights_names_a_checkpoint_without_weights(state, tmp_path):
    save_checkpoint(state, tmp_path / "best.pt")
    with pytest.raises(UserError, match=r"best\.pt: holds no weights that this version can read"):
        load_initial_weights(build_model("yolo-n", 2), str(tmp_path / "best.pt"), False)
