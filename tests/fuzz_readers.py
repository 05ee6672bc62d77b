"""Feeds a reader whatever leads it down a new path: only its own errors may come out. Coverage-guided, by atheris.

`python tests/fuzz_readers.py labels|yaml|pictures|pixels -atheris_runs=1000000`, with other options of libFuzzer, such as a
folder to keep what it found in. It ends at the first other exception and writes what led to it to a file `crash-...`.
"""

import sys
import tempfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["data", "utils", "yaml", "PIL"]):
    from PIL import Image

    from data import formats
    from data.images import FORMATS, image_size, read_image
    from utils.errors import UserError
    from utils.hyp import Hyp
    from utils.yamlfile import read_yaml

FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
for kind in ("images", "labels"):
    (FOLDER / kind).mkdir()
IMAGE, LABELS, HYP = FOLDER / "images" / "a.png", FOLDER / "labels" / "a.txt", FOLDER / "h.yaml"


def labels(content: bytes) -> None:
    LABELS.write_bytes(content)
    scan = formats._Scan()
    formats._read_yolo(scan, [str(IMAGE)], [0, 1, 2])
    found = formats.Annotations(**scan.finish("abc"))
    assert len(found.boxes) == len(found.labels) == found.offsets[-1] and len(found) == 1
    assert ((found.boxes >= 0) & (found.boxes <= 1)).all() and (
        (found.labels >= 0) & (found.labels < 3)
    ).all()
    assert all(str(LABELS) in sentence and "\n" not in sentence for _, sentence in scan.errors)


def yaml(content: bytes) -> None:
    HYP.write_bytes(content)
    try:
        assert isinstance(read_yaml(HYP, Hyp), Hyp)
    except UserError as error:
        assert str(error).startswith(str(HYP)) and "\n" not in str(error) and len(str(error)) < 2000


def images(content: bytes) -> None:
    IMAGE.write_bytes(content)
    found = image_size(str(IMAGE))
    if isinstance(found, str):
        assert found.startswith(str(IMAGE)) and "\n" not in found
    else:
        assert min(found) > 0


def pixels(content: bytes) -> None:
    """A decoder that ends the process is found, too. Large pictures are left out: they take a second each."""
    IMAGE.write_bytes(content)
    size = image_size(str(IMAGE))
    if not isinstance(size, str) and size[0] * size[1] < 100_000:
        with suppress(UserError):
            assert read_image(str(IMAGE)).shape[0] == 3


def seeds(reader: str) -> list[bytes]:
    """What to begin with."""
    if reader == "labels":
        return [b"0 0.5 0.5 0.25 0.25\n2 .1 .2 .3 .4\r\n\n1 1e-1 5e-1 1 1"]
    if reader == "yaml":
        hyps = (Path(__file__).parents[1] / "hyp").glob("*.yaml")
        return [
            b"scheduler: {name: cawb, steps: [33%, 7], lf: 'lambda x, y: x / y'}\n",
            *(h.read_bytes() for h in hyps),
        ]
    found = []
    for format in FORMATS:
        output = BytesIO()
        Image.new("RGB", (9, 7), (10, 200, 30)).save(output, format)
        found.append(output.getvalue())
    return found


if __name__ == "__main__":
    reader = sys.argv.pop(1)
    Image.new("RGB", (9, 7)).save(IMAGE)
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds(reader)):
        (corpus / str(number)).write_bytes(seed)
    readers = {function.__name__: function for function in (labels, yaml, images, pixels)}
    atheris.Setup([*sys.argv, "-rss_limit_mb=0", str(corpus)], readers[reader])
    atheris.Fuzz()
