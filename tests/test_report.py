"""utils/report.py, utils/plots.py and the F1 of an image (utils/confusion.py)."""

import base64
import re
import shutil
import subprocess
from array import array
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import torch
import yaml
from conftest import TracedMemory, read_results
from PIL import Image

from utils.confusion import match_detections, per_image_f1
from utils.ground_truth import GroundTruth
from utils.hyp import Hyp
from utils.metrics import evaluate
from utils.plots import draw_confusion, draw_plan, draw_predictions, draw_results, draw_schedule
from utils.report import RunSummary, command_line, write_report

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
HEADLESS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Page(HTMLParser):
    """The page's text, the URLs in it, and its tags, each of which must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.urls, self.text = [], set(), [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        url_attributes = ("src", "href", "data", "srcset", "action")
        self.urls += [value for name, value in attributes if name in url_attributes]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + " "


def test_report_is_self_contained_and_complete(trained_run):
    run_dir = trained_run / "exp"
    text = (run_dir / "report.html").read_text()
    page = Page(text)
    assert not page.tags & {"script", "link"} and "url(" not in text and "@import" not in text
    assert all(url.startswith("data:image/") for url in page.urls)
    assert len(page.urls) == 3 + 2 * 5  # plots, and two of each validation image
    best = max(read_results(run_dir), key=lambda row: float(row["metrics/mAP50-95"]))
    for key in ("precision", "recall", "mAP50", "mAP75", "mAP50-95"):
        assert f"{float(best[f'metrics/{key}']):.3f}" in page.text
    for key in yaml.safe_load((run_dir / "hyp.yaml").read_text()):
        assert key in page.text
    assert re.search(r"close_mosaic\s+4\s+default: 10", page.text)
    assert page.text.count("default:") == 1
    assert re.search(
        r"python train\.py --hyp \S*h\.yaml --data \S+ --epochs 20 --batch-size 4 --imgsz 64"
        r" --device cpu",
        page.text,
    )


def test_pictures_of_small_images_are_large_enough_for_their_labels(trained_run):
    """The images have 80 x 64 pixels."""
    text = (trained_run / "exp" / "report.html").read_text()
    jpegs = re.findall(r"data:image/jpeg;base64,([^']+)", text)
    sizes = {Image.open(BytesIO(base64.b64decode(data))).size for data in jpegs}
    assert sizes == {(480, 384)}
    width, height = Image.open(trained_run / "exp" / "val_batch.jpg").size
    # Two rows of four images, each 5 times as large and below a caption.
    assert width == 4 * 322 + 2 and 2 * 322 + 30 < height < 2 * 322 + 60


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_report_is_rendered_by_a_browser(trained_run, tmp_path):
    screenshot = tmp_path / "page.png"
    command = [
        BROWSER,
        *HEADLESS,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1200,4000",
        f"--screenshot={screenshot}",
    ]
    subprocess.run(
        [*command, (trained_run / "exp" / "report.html").as_uri()],
        check=True,
        timeout=120,
        capture_output=True,
    )
    pixels = np.asarray(Image.open(screenshot).convert("L"))
    assert pixels.shape[1] == 1200
    # No part of the page is empty.
    assert all((pixels[y : y + 400] < 200).mean() > 0.005 for y in range(0, 2800, 400))


def test_command_line_omits_defaults_and_resume():
    args = {"data": "my data.yaml", "epochs": 5, "noval": True, "seed": 0, "resume": "auto"}
    defaults = {"data": "shapes.yaml", "epochs": None, "noval": False, "seed": 0, "resume": None}
    expected = "python train.py --data 'my data.yaml' --epochs 5 --noval"
    assert command_line("train.py", args, defaults) == expected


def test_command_line_omits_arguments_that_a_resumed_run_has_and_this_version_lacks():
    assert command_line("train.py", {"mixup": 0.5, "seed": 1}, {"seed": 0}) == (
        "python train.py --seed 1"
    )


def test_per_image_f1():
    # Images 0 to 4; each box is 10 x 10 pixels.
    label_x_crowd = np.array([(0, 0, 0), (1, 50, 0), (0, 0, 0), (0, 50, 0), (1, 0, 0), (0, 0, 1)])
    labels, x, crowd = label_x_crowd.T
    xywh = np.column_stack((x, 0 * x, 0 * x + 10, 0 * x + 10)).astype(float)
    offsets = np.array([0, 2, 4, 4, 5, 6])
    ground_truth = GroundTruth(("a", "b"), offsets, xywh, labels, crowd.astype(bool))
    detections = np.array(
        [
            [3, 0, 0, 10, 10, 0.9, 0],  # wrong class
            [0, 0, 0, 10, 10, 0.9, 0],
            [0, 50, 0, 10, 10, 0.6, 1],
            [1, 0, 0, 10, 10, 0.9, 0],
            [1, 80, 0, 10, 10, 0.8, 0],  # background
            [1, 50, 0, 10, 10, 0.1, 0],  # below the confidence threshold
            [4, 2, 0, 5, 5, 0.9, 0],  # inside the crowd
        ]
    )
    assert per_image_f1(match_detections(ground_truth, detections), 2) == {0: 1.0, 1: 0.5, 3: 0.0}


def short_run(ground_truth: GroundTruth, detections: np.ndarray) -> RunSummary:
    """The summary of a run of one batch, on black images."""
    return RunSummary(
        command="python train.py",
        environment={},
        hyp=Hyp(),
        rows=[{"epoch": 0, "lr/0": 0.1}],
        planned=[array("d", [0.1])],
        batches_per_epoch=1,
        result=evaluate(ground_truth, detections),
        ground_truth=ground_truth,
        detections=torch.from_numpy(detections),
        files=[f"{i}.png" for i in range(len(ground_truth.offsets) - 1)],
        read_image=lambda file: torch.zeros(3, 64, 64, dtype=torch.uint8),
    )


def test_report_of_many_classes_needs_little_memory_and_disk_space(tmp_path):
    num_classes, num_images = 1203, 40
    labels = np.arange(num_images) * 30
    ground_truth = GroundTruth.from_fractions(
        np.full((num_images, 2), 64),
        np.arange(num_images + 1),
        np.tile([0.1, 0.1, 0.5, 0.5], (num_images, 1)),
        labels,
        np.zeros(num_images, bool),
        [f"a class with the number {k}" for k in range(num_classes)],
    )
    boxes = zip(ground_truth.image_ids, ground_truth.xywh, labels, strict=True)
    rows = [[image_id, *xywh, 0.9, label] for image_id, xywh, label in boxes]
    summary = short_run(ground_truth, np.array(rows))
    with TracedMemory() as memory:
        write_report(tmp_path, summary)
    assert memory.peak < 300e6  # the matrix of one image alone would take 12 MB
    text = (tmp_path / "report.html").read_text()
    assert "a class with the number 1202" in text and len(text) < 2e6


def test_images_without_a_detection_above_the_threshold_say_so(tmp_path):
    boxes = np.tile([0.1, 0.1, 0.5, 0.5], (2, 1))
    ground_truth = GroundTruth.from_fractions(
        np.full((2, 2), 64), np.arange(3), boxes, np.zeros(2, int), np.zeros(2, bool), ["a"]
    )
    summary = short_run(ground_truth, np.zeros((0, 7)))
    write_report(tmp_path, summary)
    text = Page((tmp_path / "report.html").read_text()).text
    assert "No image has a correct detection with a score above 0.25." in text
    assert text.count("ground truth (top), no detection above 0.25 (bottom); F1 0.00") == 2

    images, target = torch.zeros(2, 3, 320, 320), {"boxes": torch.zeros(0, 4)}
    target["labels"] = torch.zeros(0, dtype=torch.long)
    one = {"boxes": torch.tensor([[200.0, 200, 300, 300]]), "labels": torch.tensor([0])}
    predictions = [one | {"scores": torch.tensor([score])} for score in (0.2, 0.9)]
    draw_predictions(images, [target, target], predictions, ["a"], tmp_path / "val.png")
    pixels = np.asarray(Image.open(tmp_path / "val.png").convert("L")).astype(int)
    captions = [pixels[:19, x : x + 300] for x in (4, 326, 648, 970)]
    assert np.array_equal(captions[0], captions[2])  # both "ground truth"
    widths = [caption.max(axis=0).nonzero()[0].max() for caption in captions]
    assert widths[1] > widths[3] > widths[0]  # "no predictions (...)" and "predictions (...)"


def test_draw_confusion_skips_the_names_of_many_classes():
    def draws_names(num_classes):
        matrix = np.eye(num_classes + 1, dtype=int)
        pngs = {
            png_bytes(draw_confusion, matrix, [f"{word} {k}" for k in range(num_classes)])
            for word in ("cat", "dog")
        }
        return len(pngs) == 2

    assert draws_names(40) and not draws_names(101)


def png_bytes(draw, *args):
    file = BytesIO()
    draw(*args, file)
    return file.getvalue()


def test_draw_results_shows_a_column_that_appears_after_a_resume():
    epochs = [{"epoch": 0, "train/box": 1.0}, {"epoch": 1, "train/box": 0.5, "train/obj": 0.2}]
    assert png_bytes(draw_results, epochs) == png_bytes(
        draw_results, [epochs[0] | {"train/obj": None}, epochs[1]]
    )
    assert png_bytes(draw_results, epochs) != png_bytes(draw_results, [epochs[0], epochs[0]])


def test_draw_schedule_with_a_group_that_some_rows_lack(tmp_path):
    planned = [array("d", [0.1, 0.2, 0.3, 0.4]), array("d", [0.4, 0.3, 0.2, 0.1])]
    without, complete = {"epoch": 0, "lr/0": 0.2}, {"epoch": 1, "lr/0": 0.4, "lr/1": 0.1}
    for history in ([without, complete], [without], []):
        draw_schedule(planned, 2, history, tmp_path / "lr.png")
        assert Image.open(tmp_path / "lr.png").size == (900, 400)


def test_draw_plan_draws_equal_curves_once():
    curve = array("d", [0.1, 0.2, 0.3, 0.4])
    pair = png_bytes(lambda file: draw_plan([curve, curve], 2, file, ["a", "b"]))
    assert pair == png_bytes(lambda file: draw_plan([curve], 2, file, ["a, b"]))
    assert pair != png_bytes(lambda file: draw_plan([curve], 2, file))
