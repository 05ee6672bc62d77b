"""utils/metrics.py: the metrics agree with pycocotools, on predictions of a trained model."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
import torch
from conftest import TracedMemory
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.utils.data import DataLoader

from data.config import read_data_config
from data.dataset import TrainSet, ValSet, collate
from data.formats import read_split
from data.sampler import EpochBatchSampler
from models import build_model
from utils.ground_truth import GroundTruth
from utils.hyp import Hyp
from utils.inference import run_inference
from utils.metrics import AREAS, METRICS, combine, evaluate, evaluate_classes, format_table


def pycocotools_evaluate(ground_truth, detections, max_detections=100):
    """Return precision [IoU, recall, class, area], the first area all, and COCO's 12 metrics."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, **ground_truth.to_coco()}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
        evaluation.params.maxDets[-1] = max_detections
        evaluation.evaluate()
        evaluation.accumulate()
        if max_detections == 100:  # all that it can summarize
            evaluation.summarize()
    return evaluation.eval["precision"][..., -1], evaluation.stats


def assert_agrees_with_pycocotools(ground_truth, detections):
    """Return the result of `evaluate` after comparing it with pycocotools."""
    result = evaluate(ground_truth, detections)
    precision, stats = pycocotools_evaluate(ground_truth, detections)
    assert result.overall["mAP50-95"] == pytest.approx(stats[0], abs=1e-9)
    assert result.overall["mAP50"] == pytest.approx(stats[1], abs=1e-9)
    assert result.overall["mAP75"] == pytest.approx(stats[2], abs=1e-9)
    for area, stat in zip(AREAS, stats[3:6], strict=True):
        expected = math.nan if stat == -1 else stat
        mean = result.overall[f"mAP-{area}"]
        assert mean == pytest.approx(expected, abs=1e-9, nan_ok=True)
        values = [row[f"mAP-{area}"] for row in result.classes]
        by_class = precision[..., 1 + AREAS.index(area)].mean((0, 1))  # -1: no box of this area
        expected = np.where(by_class < 0, np.nan, by_class)
        assert values == pytest.approx(expected, abs=1e-9, nan_ok=True)
    precision = precision[..., 0]
    for k, row in enumerate(result.classes):
        if row["boxes"]:
            assert row["mAP50-95"] == pytest.approx(precision[:, :, k].mean(), abs=1e-9)
            assert row["mAP50"] == pytest.approx(precision[0, :, k].mean(), abs=1e-9)
            f1 = [
                2 * p * r / (p + r) if p + r else 0
                for p, r in zip(precision[0, :, k], np.linspace(0, 1, 101), strict=True)
            ]
            best = f1.index(max(f1))
            assert (row["precision"], row["recall"]) == pytest.approx(
                (precision[0, best, k], best / 100), abs=1e-9
            )
    return result


def test_evaluate_agrees_with_pycocotools_on_a_trained_model(bccd):
    config = read_data_config(bccd / "data.yaml")
    train, val = read_split(config, "train"), read_split(config, "val")
    torch.manual_seed(0)
    model = build_model("yolo-n", 3).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), 0.002)
    train_set = TrainSet(train, Hyp(mosaic=0), 0, 0)
    for epoch in range(4):
        sampler = EpochBatchSampler(64, 8, (160, 160), 0)
        sampler.epoch = epoch
        for images, targets in DataLoader(train_set, batch_sampler=sampler, collate_fn=collate):
            optimizer.zero_grad()
            sum(model(images, targets).values()).backward()
            optimizer.step()
    loader = DataLoader(ValSet(val, 160, 32), batch_size=16, collate_fn=collate)
    detections = run_inference(model, loader, torch.device("cpu"), torch.float32)
    assert len(detections) > 1000
    result = assert_agrees_with_pycocotools(val.ground_truth(), detections)
    assert (
        result.overall["mAP50"] > 0.02
    )  # the model has learned something, so the comparison means something
    table = format_table(result)
    assert "Platelets" in table and len(table.splitlines()) == 5


def test_evaluate_with_perfect_no_and_crowd_detections():
    sizes = np.array([[100, 80], [60, 60], [50, 50]])
    boxes = np.array(
        [[0.1, 0.1, 0.5, 0.5], [0.2, 0.3, 0.9, 0.9], [0, 0, 1, 1], [0.5, 0.5, 0.6, 0.7]],
        dtype=np.float32,
    )
    labels, crowd = np.array([0, 2, 0, 0]), np.array([False, False, True, False])
    ground_truth = GroundTruth.from_fractions(
        sizes, np.array([0, 2, 4, 4]), boxes, labels, crowd, ["a", "b", "c"]
    )
    rows = [
        [a["image_id"], *a["bbox"], 0.9, a["category_id"]]
        for a in ground_truth.to_coco()["annotations"]
        if not a["iscrowd"]
    ]
    rows.append([1, 2.0, 2.0, 40.0, 40.0, 0.95, 0])  # inside the crowd: ignored
    result = assert_agrees_with_pycocotools(ground_truth, np.array(rows))
    assert all(result.overall[name] == pytest.approx(1) for name in METRICS)
    assert np.isnan(result.classes[1]["mAP50"]) and result.classes[0]["boxes"] == 2
    empty = evaluate(ground_truth, np.zeros((0, 7)))
    assert all(empty.overall[name] == 0 for name in METRICS)
    assert np.isnan(empty.overall["confidence"]) and np.isnan(empty.overall["mAP-large"])


def random_data(num_images, num_classes, num_boxes, num_detections, seed=0):
    """Return a ground truth with some crowds, and detections with equal scores among them."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(num_boxes, np.full(num_images, 1 / num_images))
    corner = rng.uniform(0, 0.7, (num_boxes, 2))
    boxes = np.concatenate((corner, corner + rng.uniform(0.05, 0.3, (num_boxes, 2))), axis=1)
    labels = rng.integers(num_classes, size=num_boxes)
    ground_truth = GroundTruth.from_fractions(
        np.full((num_images, 2), 100),
        np.concatenate(([0], counts.cumsum())),
        boxes,
        labels,
        rng.random(num_boxes) < 0.1,
        [f"class {k}" for k in range(num_classes)],
    )
    source = rng.integers(num_boxes, size=num_detections)
    xywh = ground_truth.xywh[source].copy()
    xywh[:, :2] += rng.normal(0, 2, (num_detections, 2))
    image_ids = ground_truth.image_ids[source]
    other_labels = rng.integers(num_classes, size=num_detections)
    label = np.where(rng.random(num_detections) < 0.7, labels[source], other_labels)
    score = rng.integers(1, 50, num_detections) / 50
    return ground_truth, np.column_stack((image_ids, xywh, score, label))


def test_evaluate_agrees_with_pycocotools_on_random_data():
    ground_truth, detections = random_data(40, 7, 300, 900)
    result = assert_agrees_with_pycocotools(ground_truth, detections)
    assert 0.1 < result.overall["mAP50-95"] < 0.9
    for k, row in enumerate(result.classes):
        of_class = (ground_truth.labels == k) & ~ground_truth.crowd
        assert row["boxes"] == of_class.sum()
        assert row["images"] == len(set(ground_truth.image_ids[of_class]))


def crowded_data(num_objects: int, num_classes: int):
    """Return a ground truth of one image with many objects in a grid, and perfect detections."""
    index = np.arange(num_objects)
    corner = np.column_stack((index % 20, index // 20)) * 0.05
    boxes, labels = np.concatenate((corner, corner + 0.03), axis=1), index % num_classes
    names = [f"class {k}" for k in range(num_classes)]
    offsets, crowd = np.array([0, num_objects]), np.zeros(num_objects, bool)
    sizes = np.array([[1000, 1000]])
    ground_truth = GroundTruth.from_fractions(sizes, offsets, boxes, labels, crowd, names)
    scores = 0.9 - 0.001 * index
    return ground_truth, np.column_stack((0 * index, ground_truth.xywh, scores, labels))


@pytest.mark.parametrize(("num_objects", "num_classes"), [(101, 1), (150, 1), (400, 3), (100, 1)])
def test_a_perfect_detector_of_many_objects_in_an_image_gets_1(num_objects, num_classes):
    overall = evaluate(*crowded_data(num_objects, num_classes)).overall
    assert [overall[name] for name in METRICS] == pytest.approx([1.0] * len(METRICS))


def test_more_than_100_objects_in_an_image_agree_with_pycocotools_at_that_limit():
    ground_truth, detections = random_data(3, 2, 900, 2400, seed=1)
    limit = int(np.bincount(ground_truth.image_ids[~ground_truth.crowd]).max())
    assert limit > 200
    precision, _ = pycocotools_evaluate(ground_truth, detections, limit)
    result = evaluate(ground_truth, detections)
    expected, small, _, _ = precision.mean((0, 1, 2))
    assert result.overall["mAP50-95"] == pytest.approx(expected, abs=1e-9)
    assert result.overall["mAP-small"] == pytest.approx(small, abs=1e-9)
    at_100, _ = pycocotools_evaluate(ground_truth, detections)
    assert at_100[..., 0].mean() < 0.9 * expected


def test_detection_limit_ignores_crowds():
    ground_truth, detections = crowded_data(150, 1)
    assert ground_truth.detection_limit == 150
    ground_truth.crowd[100:] = True
    assert ground_truth.detection_limit == 100
    assert_agrees_with_pycocotools(ground_truth, detections)


def test_evaluate_needs_little_memory_with_many_classes_and_images():
    """No entry for every pair of an image and a class, of which there are 400,000 here."""
    ground_truth, detections = random_data(1000, 400, 1000, 2000)
    with TracedMemory() as memory:
        evaluate(ground_truth, detections)
    assert memory.peak < 10e6


def f1_of(ground_truth, detections, label, threshold):
    """Return the F1 at IoU 0.5 of the detections of a class with at least this score."""
    boxes = (ground_truth.labels == label) & ~ground_truth.crowd
    of_class = detections[(detections[:, 6] == label) & (detections[:, 5] >= threshold)]
    matched, correct, ignored = set(), 0, 0
    for image_id, *box, _, _ in of_class[of_class[:, 5].argsort(kind="stable")[::-1]]:
        rows = np.flatnonzero((ground_truth.image_ids == image_id) & (ground_truth.labels == label))
        ious = np.array([iou_of(box, ground_truth.xywh[row]) for row in rows])
        free = [
            (iou, row)
            for iou, row in zip(ious, rows, strict=True)
            if iou >= 0.5 and row not in matched and not ground_truth.crowd[row]
        ]
        if free:
            correct += 1
            matched.add(max(free)[1])
        ignored += not free and any(ground_truth.crowd[rows])
    return 2 * correct / (boxes.sum() + len(of_class) - ignored)


def iou_of(a, b):
    width = max(0.0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
    return width * height / (a[2] * a[3] + b[2] * b[3] - width * height)


def test_confidence_is_the_threshold_with_the_best_f1():
    ground_truth, detections = random_data(20, 3, 120, 250, seed=3)
    ground_truth.crowd[:] = False
    detections[:, 5] = np.random.default_rng(0).random(len(detections))  # no ties
    result = evaluate(ground_truth, detections)
    thresholds = np.linspace(0, 1, 201)
    curves = []
    for k, row in enumerate(result.classes):
        curves.append([f1_of(ground_truth, detections, k, x) for x in thresholds])
        best = f1_of(ground_truth, detections, k, row["confidence"])
        assert best >= max(curves[-1]) - 0.02 > 0.2  # recall is in steps of 0.01
    mean = [
        np.mean([f1_of(ground_truth, detections, k, x) for k in range(3)])
        for x in (result.overall["confidence"], *thresholds)
    ]
    assert mean[0] >= max(mean) - 0.02


def test_classes_in_shards_combine_to_the_same_result():
    """As several processes share an evaluation."""
    ground_truth, detections = random_data(40, 7, 300, 900)
    parts = [evaluate_classes(ground_truth, detections, range(rank, 7, 3)) for rank in range(3)]
    results = [combine(parts)[0], evaluate(ground_truth, detections)]
    assert json.dumps(vars(results[0])) == json.dumps(vars(results[1]))
    assert 0 < results[0].overall["mAP-small"] < 1
