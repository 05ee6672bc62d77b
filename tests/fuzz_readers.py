"""Coverage-guided fuzzing of the readers with atheris: only UserError may be raised.

`python tests/fuzz_readers.py labels|yaml|images|pixels -atheris_runs=1000000`; other options are
libFuzzer's, such as a directory for the corpus. The first other exception ends it, and the input
that caused it is written to a file `crash-...`.
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

    from data.formats.scan import Annotations, Scan
    from data.formats.yolo import read_yolo
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
    scan = Scan()
    read_yolo(scan, "images", [str(IMAGE)], [0, 1, 2])
    data = Annotations.from_arrays(scan.finish("abc"))
    assert len(data.boxes) == len(data.labels) == data.offsets[-1] and len(data) == 1
    assert ((data.boxes >= 0) & (data.boxes <= 1)).all()
    assert ((data.labels >= 0) & (data.labels < 3)).all()
    assert all(str(LABELS) in message and "\n" not in message for _, message in scan.errors)


def yaml(content: bytes) -> None:
    HYP.write_bytes(content)
    try:
        assert isinstance(read_yaml(HYP, Hyp), Hyp)
    except UserError as error:
        assert str(error).startswith(str(HYP)) and "\n" not in str(error) and len(str(error)) < 2000


def images(content: bytes) -> None:
    IMAGE.write_bytes(content)
    size = image_size(str(IMAGE))
    if isinstance(size, str):
        assert size.startswith(str(IMAGE)) and "\n" not in size
    else:
        assert min(size[:2]) > 0


def pixels(content: bytes) -> None:
    """Also detects decoders that crash the process. Large images, a second each, are skipped."""
    IMAGE.write_bytes(content)
    size = image_size(str(IMAGE))
    if not isinstance(size, str) and size[0] * size[1] < 100_000:
        with suppress(UserError):
            assert read_image(str(IMAGE)).shape[0] == 3


def seeds(reader: str) -> list[bytes]:
    """Return valid inputs to start from."""
    if reader == "labels":
        return [b"0 0.5 0.5 0.25 0.25\n2 .1 .2 .3 .4\r\n\n1 1e-1 5e-1 1 1"]
    if reader == "yaml":
        hyps = (Path(__file__).parents[1] / "hyp").glob("*.yaml")
        return [
            b"scheduler: {name: cawb, steps: [33%, 7], lf: 'lambda x, y: x / y'}\n",
            *(h.read_bytes() for h in hyps),
        ]
    files = []
    for format in FORMATS:
        output = BytesIO()
        Image.new("RGB", (9, 7), (10, 200, 30)).save(output, format)
        files.append(output.getvalue())
    return files


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
