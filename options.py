"""What `train.py` can be asked for. A new argument goes into `DEFAULTS` and into the parser; the loop reads it as `args.NAME`."""

import argparse
from typing import Any

from models import MODELS, backbone_name, model_name
from utils.cli import (
    Parser,
    batch_size,
    dir_name,
    freeze_spec,
    imgsz_range,
    int_range,
    non_negative_float,
    weights_path,
)

DEFAULTS = {
    "hyp": "hyp.yaml", "data": "shapes.yaml", "model": "yolo-n", "weights": None, "epochs": None, "batch_size": None,
    "imgsz": None, "device": "auto", "workers": None, "seed": 0, "project": "runs/train", "name": "exp", "exist_ok": False,
    "resume": None, "save_every": 5.0, "patience": 50, "noval": False, "noplots": False, "sync_bn": False, "deterministic": False,
    "backbone": None, "pretrained": False, "freeze": None, "cache": None, "tensorboard": False, "strict_data": False,
    "detect_anomaly": False,
}  # fmt: skip


def parse_args(argv: list[str] | None) -> dict[str, Any]:
    """The arguments that `argv` gives, or the command line for None, and no others. Raises UserError for a mistake."""
    p = Parser(
        description="Train a detector. Defaults stand in parentheses.",
        argument_default=argparse.SUPPRESS,
    )
    p.add_argument(
        "--hyp",
        metavar="FILE",
        help="hyperparameters: a file, or the name of one in hyp/ (hyp.yaml)",
    )
    p.add_argument(
        "--data",
        metavar="FILE",
        help="data set: a data.yaml, or the name of one in data/ (shapes.yaml, built in)",
    )
    p.add_argument(
        "--model",
        type=model_name,
        metavar="NAME",
        help=f"{', '.join(MODELS)} (yolo-n), or torchvision/NAME",
    )
    p.add_argument(
        "--weights",
        type=weights_path,
        metavar="FILE",
        help="start with a checkpoint's tensors, or torchvision's: DEFAULT",
    )
    p.add_argument(
        "--backbone",
        type=backbone_name,
        metavar="NAME",
        help="torchvision/CLASSIFIER, in place of the model's own",
    )
    p.add_argument(
        "--pretrained", action="store_true", help="start the backbone with torchvision's weights"
    )
    p.add_argument(
        "--freeze",
        type=freeze_spec,
        metavar="WHAT",
        help="keep as it is: backbone, or a number of layers from the first",
    )
    p.add_argument(
        "--epochs",
        type=int_range(1),
        metavar="N",
        help="passes over the training pictures (the data file's, or 100)",
    )
    p.add_argument(
        "--batch-size",
        type=batch_size,
        metavar="N",
        help="pictures in a batch of all, or auto (the data's, or 16)",
    )
    p.add_argument(
        "--imgsz",
        type=imgsz_range,
        metavar="PX",
        help="side of a sample, or LOW-HIGH, by 32 (the data's, or 640)",
    )
    p.add_argument(
        "--cache",
        choices=["ram", "disk"],
        help="decode all pictures at start, and keep them in ram or on disk",
    )
    p.add_argument(
        "--device",
        metavar="NAME",
        help="cpu, cuda, cuda:1, ... (auto: cuda if there is one, else cpu)",
    )
    p.add_argument(
        "--workers",
        type=int_range(0),
        metavar="N",
        help="loaders of each process (cuda: a core each, <= 8; cpu: 0)",
    )
    p.add_argument("--seed", type=int_range(0), metavar="N", help="of everything random (0)")
    p.add_argument("--project", metavar="DIR", help="folder of the run folders (runs/train)")
    p.add_argument(
        "--name",
        type=dir_name,
        metavar="NAME",
        help="the run's folder: exp, or if taken exp2, exp3, ... (exp)",
    )
    p.add_argument(
        "--exist-ok", action="store_true", help="use the run's folder even if it is taken"
    )
    p.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="PATH",
        help="go on with a run (the newest); auto: --name's, if any",
    )
    p.add_argument(
        "--save-every",
        type=non_negative_float,
        metavar="MIN",
        help="save within an epoch, too; 0: only at its end (5 minutes)",
    )
    p.add_argument(
        "--patience",
        type=int_range(0),
        metavar="N",
        help="stop after N epochs with no better mAP50-95; 0: never (50)",
    )
    p.add_argument("--noval", action="store_true", help="validate after the last epoch only")
    p.add_argument("--noplots", action="store_true", help="draw no pictures, write no report")
    p.add_argument(
        "--tensorboard", action="store_true", help="write curves and pictures for TensorBoard, too"
    )
    p.add_argument(
        "--strict-data",
        action="store_true",
        help="stop if anything in the data is faulty; else it is left out",
    )
    p.add_argument(
        "--detect-anomaly",
        action="store_true",
        help="stop at the layer where a number is not finite; twice as slow",
    )
    p.add_argument(
        "--sync-bn",
        action="store_true",
        help="batch norm over the pictures of all processes (on CUDA)",
    )
    p.add_argument(
        "--deterministic",
        action="store_true",
        help="the same bits in every run on CUDA, too; slower",
    )
    return vars(p.parse_args(argv))
