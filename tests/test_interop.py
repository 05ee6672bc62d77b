"""What annotation tools export is read as they mean it.

The exports were written by the tools themselves (interop/run.py); of their images, only the sizes
matter here, so they are drawn anew.
"""

import json
from pathlib import Path

import pytest
from interop.dataset import differences, draw_copy
from interop.writers import EXPORTS

SAVED = Path(__file__).parent / "interop" / "exports"


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.name)
def test_exports_of_annotation_tools_are_read(export, tmp_path):
    saved = json.loads((SAVED / f"{export.name}.json").read_text(encoding="utf-8"))
    for name in saved["images"]:
        draw_copy(tmp_path / name)
    for name, text in saved["files"].items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    found, *_ = differences(tmp_path / "data.yaml", export.loss)
    assert found == []
