"""The arguments of `train.py`, each declared once; the loop reads them as `args.NAME`."""

import argparse
from collections.abc import Mapping
from typing import Any

from models import MODELS, SHORTHANDS, backbone_name, model_name
from utils.amp import AMP
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

# In hyp/, the default of --hyp for published weights: of a backbone, and of a whole detector.
FINETUNE, FINETUNE_DETECTOR = "finetune.yaml", "finetune_detector.yaml"


def build_parser() -> Parser:
    """Return the parser; an option's default is that of `add_argument`."""
    p = Parser(prog="train.py", description="Train a detector. Defaults in parentheses.")
    add = p.add_argument
    add(
        "--hyp",
        default="hyp.yaml",
        metavar="FILE",
        help="hyperparameters: a file, or the name of one in hyp/ (%(default)s; "
        f"for published weights {FINETUNE}, or {FINETUNE_DETECTOR} for a whole detector)",
    )
    add(
        "--data",
        default="shapes.yaml",
        metavar="FILE",
        help="dataset: a data.yaml, a directory with one, or the name of one in data/ "
        "(%(default)s, built in)",
    )
    add(
        "--model",
        default="yolo-n",
        type=model_name,
        metavar="NAME",
        help=f"{', '.join(MODELS)}, torchvision/NAME, {', '.join(SHORTHANDS)}, or "
        "transformers/NAME with a hub id or folder (%(default)s)",
    )
    add(
        "--weights",
        type=weights_path,
        metavar="FILE",
        help="initialize from a checkpoint; DEFAULT: from the weights that are published for the "
        "--model, or else for its --backbone; .safetensors: those of a backbone of timm",
    )
    add(
        "--backbone",
        type=backbone_name,
        metavar="NAME",
        help="timm/NETWORK or torchvision/CLASSIFIER instead of the model's own backbone",
    )
    add(
        "--pretrained",
        action="store_true",
        help="the older name of --weights DEFAULT; with --weights FILE both are loaded",
    )
    add(
        "--freeze",
        type=freeze_spec,
        metavar="WHAT",
        help="freeze the backbone, or the first N layers",
    )
    add("--epochs", type=int_range(1), metavar="N", help="number of epochs (the dataset's, or 100)")
    add(
        "--batch-size",
        type=batch_size,
        metavar="N",
        help="global batch size (the dataset's, or 16), or auto: what fits into 80%% of the free "
        "GPU memory and leaves 100 steps in an epoch, at least the dataset's",
    )
    add(
        "--imgsz",
        type=imgsz_range,
        metavar="PX",
        help="training image size in pixels, or MIN-MAX for multi-scale (the dataset's, or 640)",
    )
    add(
        "--cache",
        nargs="?",
        const="ram",
        choices=["ram", "disk"],
        help="decode all images at start, keep them in RAM (default) or on disk",
    )
    add(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, cuda:1, ... (%(default)s: cuda if available)",
    )
    add(
        "--amp",
        default="auto",
        choices=AMP,
        help="mixed precision: bf16, fp16 (with a loss scale), or off; auto: the fastest that the "
        "device has (%(default)s)",
    )
    add(
        "--workers",
        type=int_range(0),
        metavar="N",
        help="DataLoader workers per process (CUDA: min(8, cores); CPU: 0)",
    )
    add(
        "--threads",
        type=int_range(1),
        metavar="N",
        help="threads that compute on the CPU (OMP_NUM_THREADS, or one per free CPU)",
    )
    add("--seed", default=0, type=int_range(0), metavar="N", help="random seed (%(default)s)")
    add(
        "--project",
        default="runs/train",
        metavar="DIR",
        help="parent directory of runs (%(default)s)",
    )
    add(
        "--name",
        default="exp",
        type=dir_name,
        metavar="NAME",
        help="run directory: exp, or if it exists exp2, exp3, ... (%(default)s)",
    )
    add(
        "--exist-ok",
        action="store_true",
        help="reuse an existing run directory; its checkpoints and results.csv are deleted",
    )
    add(
        "--resume",
        nargs="?",
        const="",
        metavar="PATH",
        help="resume a run (default: the latest); auto: resume --name if it exists, else start it",
    )
    add(
        "--save-every",
        default=5.0,
        type=non_negative_float,
        metavar="MIN",
        help="minutes between checkpoints within an epoch; 0: epoch ends only (%(default)s)",
    )
    add(
        "--save-period",
        default=0,
        type=int_range(-1),
        metavar="N",
        help="also keep the checkpoint of every Nth epoch, as weights/epochN.pt; 0: none "
        "(%(default)s)",
    )
    add(
        "--patience",
        default=50,
        type=int_range(0),
        metavar="N",
        help="early stopping: epochs without a better mAP50-95; 0 disables (%(default)s)",
    )
    add("--single-cls", action="store_true", help="train all classes as one")
    add("--noval", action="store_true", help="validate after the last epoch only")
    add("--noplots", action="store_true", help="skip plots and report.html")
    add("--tensorboard", action="store_true", help="also write curves and plots for TensorBoard")
    add(
        "--strict-data",
        action="store_true",
        help="abort on invalid images or labels instead of skipping them",
    )
    add(
        "--detect-anomaly",
        action="store_true",
        help="stop at the first module with a non-finite output (2x slower)",
    )
    add(
        "--compile",
        nargs="?",
        const="inductor",
        choices=("inductor", "cudagraphs", "aot_eager", "eager"),
        metavar="BACKEND",
        help="compile the network and the loss with torch.compile (backend: %(const)s)",
    )
    add(
        "--cuda-graphs",
        action="store_true",
        help="launch the network as CUDA graphs, in one process: faster where a GPU waits for the "
        "CPU; a change to the network must not depend on Python's state",
    )
    add("--sync-bn", action="store_true", help="use SyncBatchNorm (CUDA)")
    add(
        "--deterministic",
        action="store_true",
        help="bitwise-reproducible training on CUDA (slower)",
    )
    return p


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Parse `argv`, or the command line for None.

    Returns all arguments, and apart from them those that `argv` gives, which a resumed run must
    not contradict. Raises UserError for an invalid argument.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    # An argument that is already in the namespace does not get its default.
    unset = object()
    namespace = argparse.Namespace(**dict.fromkeys(vars(args), unset))
    values = vars(parser.parse_args(argv, namespace))
    given = {key: value for key, value in values.items() if value is not unset}
    if "hyp" not in given and _has_published_weights(args):
        # Over a pretrained backbone, neck and head start from random weights: other rates.
        args.hyp = FINETUNE if args.backbone else FINETUNE_DETECTOR
    return args, given


def _has_published_weights(args: argparse.Namespace) -> bool:
    """Return whether training starts from weights of others: published, or in their file format."""
    weights = args.weights or ""
    return args.pretrained or weights == "DEFAULT" or weights.endswith(".safetensors")


def hyp_message(args: argparse.Namespace, overrides: Mapping[str, Any]) -> list[str]:
    """Return a message if the hyp file was chosen because of the weights, else [].

    `args` and `overrides` are what `parse_args` returned.
    """
    if "hyp" in overrides or args.hyp not in (FINETUNE, FINETUNE_DETECTOR):
        return []
    return [f"hyperparameters for pretrained weights: hyp/{args.hyp} (--hyp FILE for others)"]


def defaults() -> dict[str, Any]:
    """Return the default of every argument."""
    return vars(build_parser().parse_args([]))
