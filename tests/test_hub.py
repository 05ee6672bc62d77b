"""hubconf.py in programs that have modules of their own named `models`, `data` and `utils`."""

import importlib
import pickle
from pathlib import Path

import pytest
import torch
from preloaded import run_python

import hubconf
from predictor import load

ROOT = Path(__file__).parents[1]
HUB_LOAD = f"""
model = torch.hub.load({str(ROOT)!r}, "custom", WEIGHTS, source="local")
"""
HUBCONF_LOAD = f"""
sys.path.append({str(ROOT)!r})
from hubconf import load
path = list(sys.path)
model = load(WEIGHTS)
"""
IMPORT_OWN = """
import utils
import models.net
from data import table
"""
CHECK = """
assert sys.path == path
assert utils.mine == models.net.mine == table.mine == 1
ours = Path(__file__).parent
for name, module in sys.modules.items():
    if name.partition(".")[0] in ("data", "models", "utils"):
        assert ours in Path(module.__file__).parents, name
(detections,) = model([torch.zeros(3, 64, 80, dtype=torch.uint8)])
assert detections["boxes"].shape[1] == 4
assert not model.model.training
print(*model.names)
"""


@pytest.mark.parametrize("load_model", [HUB_LOAD, HUBCONF_LOAD], ids=["hub", "hubconf"])
@pytest.mark.parametrize("own_first", [True, False], ids=["own_first", "own_last"])
def test_hub_load_next_to_own_modules(load_model, own_first, trained_run, tmp_path):
    (tmp_path / "utils.py").write_text("mine = 1\n")
    for file in ("models/__init__.py", "models/net.py", "data/__init__.py", "data/table.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("mine = 1\n")
    weights = trained_run / "exp" / "weights" / "best.pt"
    steps = [IMPORT_OWN, load_model] if own_first else [load_model, IMPORT_OWN]
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom pathlib import Path\nimport torch\npath = list(sys.path)\n"
        f"WEIGHTS = {str(weights)!r}\n" + "".join(steps) + CHECK
    )
    process = run_python([program], cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "class0 class1\n"


def test_hub_model_equals_loaded_model(trained_run):
    weights = trained_run / "exp" / "weights" / "best.pt"
    hub_model, model = (f(weights, device="cpu", conf=0.001) for f in (hubconf.load, load))
    assert hub_model.names == model.names and hub_model.imgsz == model.imgsz
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))
    (expected,) = model(image)
    for other in (hub_model, pickle.loads(pickle.dumps(hub_model))):
        (detections,) = other(image)
        assert len(expected["boxes"])
        assert all(torch.equal(detections[key], expected[key]) for key in expected)
    # Last, because a model that was given away is no longer folded, and rounds differently.
    assert type(hub_model.model).__module__ == f"{hubconf.PACKAGE}.models.yolo"


def test_hub_imports_are_redirected_in_every_module(trained_run):
    hubconf.load(trained_run / "exp" / "weights" / "best.pt")
    files = [file for name in hubconf.SUBPACKAGES for file in (ROOT / name).rglob("*.py")]
    assert len(files) > 40
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        module = importlib.import_module(
            ".".join([hubconf.PACKAGE, *parts]).removesuffix(".__init__")
        )
        for value in vars(module).values():
            source = getattr(value, "__module__", None) or ""
            assert source.partition(".")[0] not in hubconf.SUBPACKAGES, f"{file}: {value}"


def test_hub_rejects_import_that_it_cannot_redirect(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("import os\nimport utils.errors\n")
    with pytest.raises(ImportError, match=r"x\.py, line 2: .*write `from x import y`"):
        hubconf._Loader("x", str(file)).get_code("x")


def test_hub_error_for_missing_checkpoint(tmp_path):
    with pytest.raises(Exception, match=r"none\.pt: cannot be read: No such file") as error:
        torch.hub.load(str(ROOT), "custom", tmp_path / "none.pt", source="local")
    assert type(error.value).__name__ == "UserError"
