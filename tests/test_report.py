"""report.html: one file that needs nothing else, says what the run's other files say, and opens in a browser."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from conftest import rows
from PIL import Image

from utils.confusion import per_image_confusion, per_image_f1

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
HEADLESS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync"]  # fmt: skip


class Page(HTMLParser):
    """The page's text, the addresses it names, and its tags, each of which must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.addresses, self.text = [], set(), [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [
            value
            for name, value in attributes
            if name in ("src", "href", "data", "srcset", "action")
        ]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + " "


def test_it_holds_all_and_needs_nothing(trained):
    folder = trained / "exp"
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert (
        "script" not in page.tags
        and "link" not in page.tags
        and "url(" not in text
        and "@import" not in text
    )
    assert (
        all(address.startswith("data:image/") for address in page.addresses)
        and len(page.addresses) == 3 + 2 * 5
    )
    best = max(rows(folder), key=lambda row: float(row["metrics/mAP50-95"]))
    for key in ("precision", "recall", "mAP50", "mAP75", "mAP50-95"):
        assert f"{float(best[f'metrics/{key}']):.3f}" in page.text
    for key in yaml.safe_load((folder / "hyp.yaml").read_text()):
        assert key in page.text
    assert (
        re.search(r"close_mosaic\s+4\s+default: 10", page.text) and page.text.count("default:") == 1
    )
    assert re.search(
        r"python train\.py --hyp \S*h\.yaml --data \S+ --epochs 20 --batch-size 4 --imgsz 64 --device cpu",
        page.text,
    )


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
def test_a_browser_shows_it(trained, tmp_path):
    picture = tmp_path / "page.png"
    command = [
        BROWSER,
        *HEADLESS,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1200,4000",
        f"--screenshot={picture}",
    ]
    subprocess.run(
        [*command, (trained / "exp" / "report.html").as_uri()],
        check=True,
        timeout=120,
        capture_output=True,
    )
    shown = np.asarray(Image.open(picture).convert("L"))
    assert shown.shape[1] == 1200
    written = [(shown[y : y + 400] < 200).mean() > 0.005 for y in range(0, 2800, 400)]
    assert all(written)  # something stands on every part of the page


def test_how_well_it_does_in_each_picture():
    def box(image, label, x, crowd=0):
        return {"image_id": image, "category_id": label, "bbox": [x, 0, 10, 10], "iscrowd": crowd}

    truth = {
        "images": [{"id": i} for i in range(5)],
        "categories": [{"id": 0}, {"id": 1}],
        "annotations": [
            box(0, 0, 0),
            box(0, 1, 50),
            box(1, 0, 0),
            box(1, 0, 50),
            box(3, 1, 0),
            box(4, 0, 0, 1),
        ],
    }
    found = np.array([
        [3, 0, 0, 10, 10, 0.9, 0],  # of the other class
        [0, 0, 0, 10, 10, 0.9, 0], [0, 50, 0, 10, 10, 0.6, 1],  # both
        [1, 0, 0, 10, 10, 0.9, 0], [1, 80, 0, 10, 10, 0.8, 0], [1, 50, 0, 10, 10, 0.1, 0],  # one, one of nothing, one unsure
        [4, 2, 0, 5, 5, 0.9, 0],  # in a crowd
    ])  # fmt: skip
    scores = per_image_f1(per_image_confusion(truth, found))
    assert (
        [scores[i] for i in (0, 1, 3)] == [1.0, 0.5, 0.0]
        and np.isnan(scores[2])
        and np.isnan(scores[4])
    )
