"""Writes a trained detector for other programs: `python export.py --weights runs/train/exp/weights/best.pt --format onnx`."""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from models import load
from models.export_wrappers import ExportModel, ExportModelWithNMS
from utils.cli import Parser, int_range, run_cli, unit_interval
from utils.errors import UserError

SUFFIXES = {"onnx": ".onnx", "torchscript": ".torchscript", "torch_export": ".pt2"}
INPUT, OUTPUTS = "images", ("boxes", "scores", "labels")
Run = Callable[[Tensor], Sequence[Tensor]]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    p = Parser(description="Export a trained detector. Defaults stand in parentheses.")
    p.add_argument(
        "--weights",
        metavar="FILE",
        required=True,
        help="best.pt or last.pt of a run; the averaged weights are taken",
    )
    p.add_argument(
        "--format",
        choices=SUFFIXES,
        default="onnx",
        help="onnx, torchscript or torch_export (onnx)",
    )
    p.add_argument(
        "--imgsz",
        type=int_range(32),
        nargs="+",
        metavar="PX",
        help="side, or height and width (what it was trained at)",
    )
    p.add_argument(
        "--batch-size", type=int_range(1), default=1, metavar="N", help="pictures at a time (1)"
    )
    p.add_argument(
        "--dynamic",
        action="store_true",
        help="any number of pictures of any size in steps of 32; not torchscript",
    )
    p.add_argument(
        "--nms",
        action="store_true",
        help="with non-maximum suppression in it, for one picture at a time",
    )
    p.add_argument(
        "--conf",
        type=unit_interval,
        default=0.25,
        metavar="SCORE",
        help="--nms: lowest score of a detection (0.25)",
    )
    p.add_argument(
        "--iou",
        type=unit_interval,
        default=0.45,
        metavar="IOU",
        help="--nms: overlap above which the lower is dropped (0.45)",
    )
    p.add_argument("--half", action="store_true", help="weights and pictures in float16")
    return p.parse_args(argv)


@torch.no_grad()
def export(args: argparse.Namespace) -> None:
    if args.nms and args.batch_size > 1:
        raise UserError(f"--batch-size {args.batch_size}: with --nms it is one picture at a time")
    if args.dynamic and args.format == "torchscript":
        raise UserError(
            "--dynamic: torchscript has the sizes that it was traced with; allowed are onnx and torch_export"
        )
    if args.format == "onnx":
        try:
            import onnxruntime  # noqa: F401 - asked now, not after minutes
            import onnxscript  # noqa: F401 - torch's exporter needs it
        except ImportError:
            raise UserError(
                "--format onnx: needs three more packages: pip install onnx onnxscript onnxruntime"
            ) from None
    model = load(args.weights)
    if not model.exportable:
        raise UserError(
            f"{args.weights}: holds {model.name} of torchvision, which torch.onnx exports; here only our own are"
        )
    sides = args.imgsz or [model.imgsz]
    if len(sides) > 2:
        raise UserError(
            f"--imgsz {' '.join(map(str, sides))}: found {len(sides)} numbers, need a side, or height and width"
        )
    height, width = (-(-side // model.stride) * model.stride for side in (sides[0], sides[-1]))
    model.set_thresholds(args.conf, args.iou)
    metadata = {
        "names": json.dumps(model.class_names),
        "stride": str(model.stride),
        "imgsz": json.dumps([height, width]),
    }
    deployed = (ExportModelWithNMS if args.nms else ExportModel)(model).eval()
    if args.half:
        deployed.half()
    # An exporter takes a size of 1 for one that is always 1.
    count = 2 if args.dynamic and not args.nms else args.batch_size
    images = torch.rand(
        count, 3, height, width, dtype=torch.float16 if args.half else torch.float32
    )
    target = Path(args.weights).with_suffix(SUFFIXES[args.format])
    expected = deployed(images)

    # Written beside the target, read again, compared with the model, and only then put in its place.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' notes about themselves
        written = Path(folder) / target.name
        if args.format == "torchscript":
            run = to_torchscript(deployed, images, metadata, written)
        else:
            program = torch.export.export(
                deployed, (images,), dynamic_shapes=sizes(args), strict=False
            )
            run = (to_onnx if args.format == "onnx" else to_torch_export)(
                program, images, metadata, written
            )
        differences = compared(expected, run(images))
        written.replace(target)
    print(
        f"{target}: {target.stat().st_size / 1e6:.1f} MB; beside the model on random pictures {differences}"
    )


def sizes(args: argparse.Namespace) -> tuple[dict[int, object]] | None:
    """Which of the sizes of the pictures may change, as torch.export wants it; None for none."""
    if not args.dynamic:
        return None
    batch, height, width = (
        torch.export.Dim(name, min=1, max=1024) for name in ("batch", "rows", "columns")
    )
    return (
        {2: 32 * height, 3: 32 * width} if args.nms else {0: batch, 2: 32 * height, 3: 32 * width},
    )


def to_onnx(
    program: torch.export.ExportedProgram, images: Tensor, metadata: dict[str, str], path: Path
) -> Run:
    """Write `path`; what runs it."""
    import onnxruntime

    outputs = OUTPUTS[: len(program.graph_signature.user_outputs)]
    exported = torch.onnx.export(
        program, (images,), input_names=[INPUT], output_names=outputs, dynamo=True, verbose=False
    )
    exported.model.metadata_props.update(metadata)
    exported.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: [
        torch.from_numpy(output) for output in session.run(None, {INPUT: images.numpy()})
    ]


def to_torch_export(
    program: torch.export.ExportedProgram, images: Tensor, metadata: dict[str, str], path: Path
) -> Run:
    """Write `path`; what runs it."""
    torch.export.save(program, path, extra_files=metadata)
    return torch.export.load(path).module()


def to_torchscript(model: nn.Module, images: Tensor, metadata: dict[str, str], path: Path) -> Run:
    """Write `path`; what runs it."""
    torch.jit.trace(model, images).save(path, _extra_files=metadata)
    return torch.jit.load(path)


def compared(expected: Sequence[Tensor], found: Sequence[Tensor]) -> str:
    """The largest differences, in words. Raises RuntimeError where even the shapes differ."""
    shapes = [[tuple(tensor.shape) for tensor in side] for side in (expected, found)]
    if shapes[0] != shapes[1]:
        raise RuntimeError(f"what was written gives {shapes[1]} where the model gives {shapes[0]}")
    largest = [
        float((a.float() - b.float()).abs().max()) if a.numel() else 0.0
        for a, b in zip(expected, found, strict=True)
    ]
    if not len(expected[0]):
        return "nothing could be compared: it detects nothing in them at this --conf"
    return f"({len(expected[0])} x boxes of {tuple(expected[0].shape[1:])}): {largest[0]:.2g} px, scores {largest[1]:.2g}"


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit status is that of `exit_status`."""
    return run_cli("export.py", lambda: export(parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
