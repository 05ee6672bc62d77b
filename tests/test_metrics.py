"""The metrics are pycocotools', on what a trained model really predicts."""

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.utils.data import DataLoader

from data.config import read_data_config
from data.dataset import TrainSet, ValSet, collate
from data.formats import read_split
from data.sampler import EpochBatchSampler
from models import build_model
from utils.hyp import Hyp
from utils.metrics import METRICS, evaluate, format_table, run_inference, to_coco_gt


def by_pycocotools(truth, detections):
    """Precision [IoU, recall, class] at all areas and 100 detections, and the twelve COCO figures."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = {"info": {}, **truth}
        gt.createIndex()
        evaluation = COCOeval(gt, gt.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.eval["precision"][:, :, :, 0, -1], evaluation.stats


def compare(truth, detections):
    found = evaluate(truth, detections)
    precision, stats = by_pycocotools(truth, detections)
    assert found.overall["mAP50-95"] == pytest.approx(stats[0], abs=1e-9)
    assert found.overall["mAP50"] == pytest.approx(stats[1], abs=1e-9)
    assert found.overall["mAP75"] == pytest.approx(stats[2], abs=1e-9)
    for k, row in enumerate(found.classes):
        if row["boxes"]:
            assert row["mAP50-95"] == pytest.approx(precision[:, :, k].mean(), abs=1e-9)
            assert row["mAP50"] == pytest.approx(precision[0, :, k].mean(), abs=1e-9)
            f1 = [
                2 * p * r / (p + r) if p + r else 0
                for p, r in zip(precision[0, :, k], np.linspace(0, 1, 101), strict=True)
            ]
            at = f1.index(max(f1))
            assert (row["precision"], row["recall"]) == pytest.approx(
                (precision[0, at, k], at / 100), abs=1e-9
            )
    return found


def truth_of(annotations):
    a = annotations
    return to_coco_gt(a.sizes, a.offsets, a.boxes, a.labels, a.crowd, a.names)


def test_against_pycocotools_on_the_predictions_of_a_trained_model(bccd):
    config = read_data_config(bccd / "data.yaml")
    train, val = read_split(config, "train"), read_split(config, "val")
    torch.manual_seed(0)
    model = build_model("yolo-n", 3).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), 0.002)
    samples = TrainSet(train, Hyp(mosaic=0), 0, 0)
    for epoch in range(4):
        batches = EpochBatchSampler(len(samples), 16, (160, 160), 0)
        batches.epoch = epoch
        for images, targets in DataLoader(samples, batch_sampler=batches, collate_fn=collate):
            optimizer.zero_grad()
            sum(model(images, targets).values()).backward()
            optimizer.step()
    loader = DataLoader(ValSet(val, 160, 32), batch_size=16, collate_fn=collate)
    detections = run_inference(model, loader, torch.device("cpu"), bf16=False)
    assert len(detections) > 1000
    found = compare(truth_of(val), detections)
    assert found.overall["mAP50"] > 0.02  # it has learned something: there is something to compare
    assert "Platelets" in format_table(found) and len(format_table(found).splitlines()) == 5


def test_perfect_empty_and_crowd():
    sizes = np.array([[100, 80], [60, 60], [50, 50]])
    boxes = np.array(
        [[0.1, 0.1, 0.5, 0.5], [0.2, 0.3, 0.9, 0.9], [0, 0, 1, 1], [0.5, 0.5, 0.6, 0.7]],
        dtype=np.float32,
    )
    labels, crowd = np.array([0, 2, 0, 0]), np.array([False, False, True, False])
    truth = to_coco_gt(sizes, np.array([0, 2, 4, 4]), boxes, labels, crowd, ["a", "b", "c"])
    rows = [
        [a["image_id"], *a["bbox"], 0.9, a["category_id"]]
        for a in truth["annotations"]
        if not a["iscrowd"]
    ]
    rows.append([1, 2.0, 2.0, 40.0, 40.0, 0.95, 0])  # within the crowd: neither right nor wrong
    found = compare(truth, np.array(rows))
    assert all(found.overall[name] == pytest.approx(1) for name in METRICS)
    assert np.isnan(found.classes[1]["mAP50"]) and found.classes[0]["boxes"] == 2
    nothing = evaluate(truth, np.zeros((0, 7)))
    assert all(nothing.overall[name] == 0 for name in METRICS)
