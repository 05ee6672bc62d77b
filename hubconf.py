"""Load a trained detector in another program.

    model = torch.hub.load("path/to/this/directory", "custom", "best.pt", source="local")

or, with this directory on `sys.path`:

    from hubconf import load
    model = load("best.pt")

`model("image.jpg")` returns what detect.py detects; `model.model` is the torch module.

Either works in a program with modules of its own named `models`, `data` or `utils`, because ours
are imported as submodules of `PACKAGE`: in their code every `from utils.x import y` is read as
`from PACKAGE.utils.x import y`. The program's modules and its `sys.path` are not touched.
"""

import ast
import importlib
import sys
import zlib
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

dependencies = ["torch", "torchvision", "numpy"]

ROOT = Path(__file__).resolve().parent
# One name per directory, because a program may load detectors from two copies of this repository.
PACKAGE = f"detection_{zlib.crc32(bytes(ROOT)):08x}"
SUBPACKAGES = ("data", "models", "utils")


def load(path: str | Path, **options: Any) -> Any:
    """Load the detector in a checkpoint, `best.pt` or `last.pt`, as a `Predictor` (predictor.py).

    options: `device`, `conf`, `iou`, `imgsz` and `classes`, as of detect.py. Raises the UserError
    of `PACKAGE`.utils.errors where `predictor.load` raises UserError.
    """
    if PACKAGE not in sys.modules:
        sys.meta_path.insert(0, _Finder())
    return importlib.import_module(f"{PACKAGE}.predictor").load(path, **options)


custom = load  # the name that torch.hub users know from YOLOv5


class _Finder(MetaPathFinder):
    """Finds `PACKAGE` and its submodules, and nothing else."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name == PACKAGE:
            spec = ModuleSpec(name, loader=None, is_package=True)
            spec.submodule_search_locations = [str(ROOT)]
            return spec
        if not name.startswith(f"{PACKAGE}."):
            return None
        spec = PathFinder.find_spec(name, path)
        if spec and spec.origin:
            spec.loader = _Loader(name, spec.origin)
        return spec


class _Loader(SourceFileLoader):
    """Loads a source file with its imports from `SUBPACKAGES` redirected to `PACKAGE`."""

    def get_code(self, name: str) -> CodeType:
        # Compiled each time: __pycache__ holds the code with the imports as written.
        tree = ast.parse(self.get_data(self.path), self.path)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and _is_ours(node.module):
                node.module = f"{PACKAGE}.{node.module}"
            elif isinstance(node, ast.Import) and any(_is_ours(a.name) for a in node.names):
                raise ImportError(
                    f"{self.path}, line {node.lineno}: hubconf.py cannot redirect `import x` "
                    "(write `from x import y`)"
                )
        return compile(tree, self.path, "exec", dont_inherit=True)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in SUBPACKAGES
