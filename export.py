"""Export a trained detector to ONNX, TorchScript or torch.export.

python export.py --weights runs/train/exp/weights/best.pt --format onnx --dynamic
"""

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
from models.detector import Detector
from models.export_wrappers import ExportModel, ExportModelWithNMS
from utils.cli import Parser, int_range, run_cli, unit_interval
from utils.errors import UserError
from utils.letterbox import check_imgsz, round_up
from utils.log import info

SUFFIXES = {"onnx": ".onnx", "torchscript": ".torchscript", "torch_export": ".pt2"}
INPUT_NAME, OUTPUT_NAMES = "images", ("boxes", "scores", "labels")
MAX_DYNAMIC = 1024  # upper bound of a dynamic batch size, and of height and width in strides
Runner = Callable[[Tensor], Sequence[Tensor]]  # runs an exported file


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line, by default the process's. Raises UserError if it is invalid."""
    p = Parser(description="Export a trained detector. Defaults in parentheses.")
    p.add_argument(
        "--weights",
        metavar="FILE",
        required=True,
        help="best.pt or last.pt of a run; its EMA weights are exported, next to the file",
    )
    p.add_argument(
        "--format",
        choices=SUFFIXES,
        default="onnx",
        help="onnx, torchscript or torch_export (%(default)s); the last two can be moved to a GPU",
    )
    p.add_argument(
        "--imgsz",
        type=int_range(32),
        nargs="+",
        metavar="PX",
        help="image size in pixels, or height and width, rounded up to the stride (as trained)",
    )
    p.add_argument(
        "--batch-size",
        type=int_range(1),
        default=1,
        metavar="N",
        help="images per batch (%(default)s)",
    )
    p.add_argument(
        "--dynamic",
        action="store_true",
        help="dynamic batch size, height and width (multiples of the stride); not for torchscript",
    )
    p.add_argument(
        "--nms",
        action="store_true",
        help="include non-maximum suppression, for one image at a time",
    )
    p.add_argument(
        "--conf",
        type=unit_interval,
        default=0.25,
        metavar="SCORE",
        help="with --nms: confidence threshold (%(default)s)",
    )
    p.add_argument(
        "--iou",
        type=unit_interval,
        default=0.45,
        metavar="IOU",
        help="with --nms: IoU threshold for NMS (%(default)s)",
    )
    p.add_argument("--half", action="store_true", help="weights and images in float16")
    return p.parse_args(argv)


def check_args(args: argparse.Namespace) -> None:
    """Raise UserError for arguments that exclude each other or need missing packages."""
    if args.nms and args.batch_size > 1:
        raise UserError(f"--batch-size {args.batch_size}: --nms requires a batch size of 1")
    if args.dynamic and args.format == "torchscript":
        raise UserError(
            "--dynamic: not supported by torchscript, which is traced with fixed sizes (use "
            "--format onnx or torch_export)"
        )
    if args.imgsz and len(args.imgsz) > 2:
        raise UserError(
            f"--imgsz {' '.join(map(str, args.imgsz))}: found {len(args.imgsz)} numbers (need one, "
            "or height and width)"
        )
    if args.format == "onnx":
        try:  # before the model is traced, which may take minutes
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401 - torch.onnx needs it
        except ImportError:
            raise UserError(
                "--format onnx: requires more packages (pip install onnx onnxscript onnxruntime)"
            ) from None


@torch.no_grad()
def export(args: argparse.Namespace) -> None:
    """Write the detector in `args.weights` in `args.format`, next to it, and check the result."""
    check_args(args)
    model = load(args.weights)
    if not model.exportable:
        raise UserError(
            f"{args.weights}: export.py does not support {model.config['name']} (use torch.onnx)"
        )
    model.set_thresholds(args.conf, args.iou)
    sizes = args.imgsz or [model.imgsz]
    check_imgsz(min(sizes), model.min_size)
    height, width = (round_up(size, model.stride) for size in (sizes[0], sizes[-1]))
    metadata = {
        "names": json.dumps(model.class_names),
        "stride": str(model.stride),
        "imgsz": json.dumps([height, width]),
    }
    export_model = (ExportModelWithNMS if args.nms else ExportModel)(model).eval()
    if args.half:
        export_model.half()
    # Exporters specialize on dimensions of size 1.
    batch_size = 2 if args.dynamic and not args.nms else args.batch_size
    dtype = torch.float16 if args.half else torch.float32
    images = torch.rand(batch_size, 3, height, width, dtype=dtype)
    expected = export_model(images)

    # The target is replaced only after the new file has been read back and compared.
    target = Path(args.weights).with_suffix(SUFFIXES[args.format])
    with tempfile.TemporaryDirectory(dir=target.parent) as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn about their own internals
        path = Path(directory) / target.name
        if args.format == "torchscript":
            runner = to_torchscript(export_model, images, metadata, path)
        else:
            shapes = dynamic_shapes(model, args.nms) if args.dynamic else None
            program = torch.export.export(
                export_model, (images,), dynamic_shapes=shapes, strict=False
            )
            write = to_onnx if args.format == "onnx" else to_torch_export
            runner = write(program, images, metadata, path)
        difference = max_abs_diff(expected, runner(images))
        path.replace(target)
    megabytes = target.stat().st_size / 1e6
    info(f"{target}: {megabytes:.1f} MB; max difference from PyTorch on random input: {difference}")


def dynamic_shapes(model: Detector, nms: bool) -> tuple[dict[int, object]]:
    """Return the `dynamic_shapes` for torch.export: height, width and, without NMS, batch size."""
    batch, height, width = (
        torch.export.Dim(name, min=1, max=MAX_DYNAMIC) for name in ("batch", "height", "width")
    )
    shape = {2: model.stride * height, 3: model.stride * width}
    return (shape if nms else {0: batch, **shape},)


def to_onnx(
    program: torch.export.ExportedProgram, images: Tensor, metadata: dict[str, str], path: Path
) -> Runner:
    """Write an ONNX file and return a function that runs it with ONNX Runtime on the CPU."""
    import onnxruntime

    output_names = OUTPUT_NAMES[: len(program.graph_signature.user_outputs)]
    onnx_program = torch.onnx.export(
        program,
        (images,),
        input_names=[INPUT_NAME],
        output_names=output_names,
        dynamo=True,
        verbose=False,
    )
    onnx_program.model.metadata_props.update(metadata)
    onnx_program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: [
        torch.from_numpy(output) for output in session.run(None, {INPUT_NAME: images.numpy()})
    ]


def to_torch_export(
    program: torch.export.ExportedProgram, images: Tensor, metadata: dict[str, str], path: Path
) -> Runner:
    """Write a torch.export archive and return the module read back from it."""
    for node in [*program.graph.nodes]:  # asserts that a tensor is on the device of the export
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
    torch.export.save(program, path, extra_files=metadata)
    return torch.export.load(path).module()


def to_torchscript(
    model: nn.Module, images: Tensor, metadata: dict[str, str], path: Path
) -> Runner:
    """Write a TorchScript file and return the module read back from it."""
    torch.jit.trace(model, images).save(path, _extra_files=metadata)
    return torch.jit.load(path)


def max_abs_diff(expected: Sequence[Tensor], outputs: Sequence[Tensor]) -> str:
    """Describe the largest differences between boxes and scores.

    Raises RuntimeError if the shapes differ, except in the number of boxes after NMS: rounding may
    decide whether a score is above --conf.
    """
    expected_shapes = [tuple(tensor.shape) for tensor in expected]
    output_shapes = [tuple(tensor.shape) for tensor in outputs]
    if expected[0].ndim == 2 and len(outputs[0]) != len(expected[0]):  # boxes (k, 4)
        return (
            f"not measured, because the numbers of boxes differ: {len(outputs[0])} and in PyTorch "
            f"{len(expected[0])}"
        )
    if output_shapes != expected_shapes:
        raise RuntimeError(
            f"the exported model returns shapes {output_shapes}, PyTorch returns {expected_shapes}"
        )
    if not len(expected[0]):
        return "not measured, because nothing is detected in it at this --conf"
    boxes, scores = (
        float((expected[i].float() - outputs[i].float()).abs().max()) for i in range(2)
    )
    return f"{boxes:.2g} px for boxes {expected_shapes[0]}, {scores:.2g} for scores"


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_cli("export.py", lambda: export(parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
