"""Exports a small dataset with the libraries of annotation tools, and reads it with our readers.

`python tests/interop/run.py` prints a row for each export: images and boxes read, and the largest
distance of a box's side from the truth in pixels, next to what the format's rounding allows. The
exit status is 1 if an export is not read as it is meant, or its tool is not installed.
`--save tests/interop/exports` writes the text files of each export for tests/test_interop.py.
CVAT's own xml and CreateML's json are not read: these tools write VOC, COCO and YOLO, too.
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import yaml  # noqa: E402
from interop.dataset import differences, truth_name  # noqa: E402
from interop.writers import EXPORTS, Export  # noqa: E402

from utils.errors import UserError  # noqa: E402


def write(export: Export, directory: Path) -> None:
    """Write an export, and a data.yaml where its tool writes none, to a new directory."""
    with tempfile.TemporaryDirectory() as temporary:
        written = Path(temporary) / "written"
        written.mkdir()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            keys = export.write(written)
        if keys is not None:
            text = yaml.safe_dump(keys, allow_unicode=True)
            (written / "data.yaml").write_text(text, encoding="utf-8")
        for path in written.rglob("*"):
            if path.suffix in {".json", ".xml"}:
                # People read exports on other machines than they were written on.
                text = path.read_text(encoding="utf-8").replace(temporary, "/home/somebody")
                path.write_text(text, encoding="utf-8")
        shutil.copytree(written, directory)


def check(export: Export, directory: Path) -> tuple[str, list[str]]:
    """Write and read an export; return its row of the table and what is wrong with it."""
    try:
        version = importlib.metadata.version(export.package)
    except importlib.metadata.PackageNotFoundError:
        return "", [f"{export.package} is not installed"]
    write(export, directory)
    try:
        problems, images, boxes, largest = differences(directory / "data.yaml", export.loss)
    except UserError as error:
        return f"{version:<9} not read", [str(error)]
    numbers = (
        f"{images:>6} {boxes:>5} {largest:>7.3f} {export.loss.pixels:>7.2f} {len(problems):>6}"
    )
    return f"{version:<9} {numbers}", problems


def save(export: Export, directory: Path, path: Path) -> None:
    """Save the text files of the export in `directory`, and the names of its images, as a json."""
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    names = [file.relative_to(directory).as_posix() for file in files]
    texts = {
        name: file.read_text(encoding="utf-8")
        for name, file in zip(names, files, strict=True)
        if truth_name(name) is None
    }
    version = importlib.metadata.version(export.package)
    content = {
        "tool": f"{export.package} {version}",
        "images": [name for name in names if name not in texts],
        "files": texts,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--keep", type=Path, metavar="DIR", help="keep the exports in this directory")
    p.add_argument("--save", type=Path, metavar="DIR", help="save their text files there as json")
    p.add_argument("--only", default="", metavar="TEXT", help="exports whose name has this in it")
    args = p.parse_args()
    logging.disable()
    wrong = 0
    print(f"{'export':<36} {'version':<9} images boxes  pixels allowed faults")
    with tempfile.TemporaryDirectory() as temporary:
        for export in EXPORTS:
            if args.only not in export.name:
                continue
            directory = (args.keep or Path(temporary)) / export.name
            row, problems = check(export, directory)
            wrong += bool(problems)
            print(f"{export.name:<36} {row}", *problems, sep="\n    ", flush=True)
            if args.save and directory.exists():
                save(export, directory, args.save / f"{export.name}.json")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
