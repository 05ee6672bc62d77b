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

from utils.cpus import limit_spinning

if __name__ == "__main__":
    limit_spinning()  # before torch is loaded

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from models import load
from models.detector import Detector
from models.export_wrappers import ExportModel, ExportModelWithNMS
from models.folding import fold_batch_norms
from utils.cli import Parser, int_range, run_cli, unit_interval
from utils.errors import UserError
from utils.letterbox import check_imgsz, round_up
from utils.log import info, warning

SUFFIXES = {"onnx": ".onnx", "torchscript": ".torchscript", "torch_export": ".pt2"}
INPUT_NAME, OUTPUT_NAMES = "images", ("boxes", "scores", "labels")
MAX_DYNAMIC = 1024  # upper bound of a dynamic batch size, and of height and width in strides
MATCH_PX = 4  # between two detections that are the same but for rounding, in float16 too
Runner = Callable[[Tensor], Sequence[Tensor]]  # runs an exported file


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line, by default the process's. Raises UserError if it is invalid."""
    p = Parser(
        prog="export.py",
        description="Export a trained detector, compare the file with PyTorch, and say what is "
        "needed to load it. Defaults in parentheses.",
    )
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
        metavar="IOU",
        help="with --nms: IoU threshold for NMS (0.45; a model of transformers: no NMS)",
    )
    p.add_argument("--half", action="store_true", help="weights and images in float16")
    return p.parse_args(argv)


def check_args(args: argparse.Namespace) -> None:
    """Raise UserError for arguments that exclude each other or need missing packages."""
    if args.nms and args.batch_size > 1:
        raise UserError(
            f"--batch-size {args.batch_size}: --nms requires a batch size of 1 "
            "(use --batch-size 1, or export without --nms)"
        )
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


def check_target(path: Path) -> None:
    """Raise UserError if the file `path` cannot be written, before the model is traced."""
    if path.is_dir():
        raise UserError(f"{path}: is a directory (export.py writes a file of this name)")
    try:
        tempfile.TemporaryDirectory(dir=path.parent).cleanup()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror} (the file is made next to the weights; "
            "copy them to a directory of yours)"
        ) from None


@torch.no_grad()
def export(args: argparse.Namespace) -> None:
    """Write the detector in `args.weights` in `args.format`, next to it, and check the result."""
    check_args(args)
    model = load(args.weights)
    target = Path(args.weights).with_suffix(SUFFIXES[args.format])
    check_target(target)
    if not model.exportable:
        raise UserError(
            f"{args.weights}: export.py does not support {model.config['name']} (use torch.onnx)"
        )
    if args.dynamic and not model.dynamic_export:
        raise UserError(
            f"--dynamic: not supported by {model.config['name']} (export a file for each size)"
        )
    model.set_thresholds(args.conf, model.default_iou if args.iou is None else args.iou)
    sizes = args.imgsz or [model.imgsz]
    check_imgsz(min(sizes), model.min_size)
    height, width = (round_up(size, model.stride) for size in (sizes[0], sizes[-1]))
    if (height, width) != (sizes[0], sizes[-1]):
        size = " ".join(map(str, sizes))
        warning(
            f"--imgsz {size}: not a multiple of {model.stride}; the file is for images of {height} "
            f"x {width} (height x width)"
        )
    metadata = {
        "names": json.dumps(model.class_names),
        "stride": str(model.stride),
        "channels": str(model.channels),
        "imgsz": json.dumps([height, width]),
    }
    wrapper = ExportModelWithNMS if args.nms else ExportModel
    export_model, reference = wrapper(fold_batch_norms(model)).eval(), wrapper(model).eval()
    if args.half:
        export_model.half()
        reference.half()
    # Exporters specialize on dimensions of size 1.
    batch_size = 2 if args.dynamic and not args.nms else args.batch_size
    dtype = torch.float16 if args.half else torch.float32
    images = torch.rand(batch_size, model.channels, height, width, dtype=dtype)
    expected = reference(images)
    predictions = None
    if args.nms:
        (boxes,), (scores,) = model.predict(images)
        predictions = clip_boxes_to_image(boxes, (height, width)), scores

    # The target is replaced only after the new file has been read back and compared.
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
        difference = max_abs_diff(expected, runner(images), predictions)
        path.replace(target)
    megabytes = target.stat().st_size / 1e6
    info(f"{target}: {megabytes:.1f} MB; max difference from PyTorch on random input: {difference}")
    info(f"to load it: {requirements(args.format, args.nms, target)}")


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


def requirements(format: str, nms: bool, path: Path) -> str:
    """Say what a program needs to load the exported file `path`."""
    if format == "onnx":
        import onnx
        import onnxruntime

        model = onnx.load(path, load_external_data=False)
        (opset,) = (entry.version for entry in model.opset_import if not entry.domain)
        return f"ONNX opset {opset} (checked with onnxruntime {onnxruntime.__version__})"
    call = {"torchscript": "torch.jit.load", "torch_export": "torch.export.load"}[format]
    nms_op = ", and `import torchvision` before it, which has the NMS" if nms else ""
    return f"{call} of PyTorch {torch.__version__.partition('+')[0]} or later{nms_op}"


def max_abs_diff(
    expected: Sequence[Tensor],
    outputs: Sequence[Tensor],
    predictions: Sequence[Tensor] | None = None,
) -> str:
    """Describe the largest differences between boxes and scores.

    Detections after NMS are compared as sets, because rounding decides about their order, and
    whether a score is above --conf. `predictions` are all boxes (A, 4) and scores (A, num_classes)
    in the image: an untrained model has so many scores that are nearly equal that the file may
    select quite other ones of them. Raises RuntimeError if anything else has another shape.
    """
    if expected[0].ndim == 2:  # boxes (k, 4)
        return _compare_detections(expected, outputs, predictions)
    expected_shapes = [tuple(tensor.shape) for tensor in expected]
    output_shapes = [tuple(tensor.shape) for tensor in outputs]
    if output_shapes != expected_shapes:
        raise RuntimeError(
            f"the exported model returns shapes {output_shapes}, PyTorch returns {expected_shapes}"
        )
    boxes, scores = (
        float((expected[i].float() - outputs[i].float()).abs().max()) for i in range(2)
    )
    return f"{boxes:.2g} px for boxes {expected_shapes[0]}, {scores:.2g} for scores"


def _compare_detections(
    expected: Sequence[Tensor],
    outputs: Sequence[Tensor],
    predictions: Sequence[Tensor] | None,
) -> str:
    """Describe the largest differences between detections: boxes (k, 4), scores (k,), labels (k,).

    Each is paired with the closest one of its class, no more than `MATCH_PX` apart.
    """
    (boxes, scores, labels), (other_boxes, other_scores, other_labels) = expected, outputs
    if not len(boxes) and not len(other_boxes):
        return "not measured, because nothing is detected in it at this --conf"
    distances = torch.cdist(boxes.float(), other_boxes.float(), p=torch.inf)
    distances[labels[:, None] != other_labels] = torch.inf
    box_diff = score_diff = 0.0
    pairs, unpaired = 0, torch.ones(len(other_boxes), dtype=torch.bool)
    while distances.numel() and float(distances.min()) <= MATCH_PX:
        i, j = divmod(int(distances.argmin()), len(other_boxes))
        box_diff = max(box_diff, float(distances[i, j]))
        score_diff = max(score_diff, float((scores[i] - other_scores[j]).float().abs()))
        distances[i], distances[:, j] = torch.inf, torch.inf
        unpaired[j] = False
        pairs += 1
    text = f"{box_diff:.2g} px for boxes, {score_diff:.2g} for scores of {pairs} detections"
    if not pairs:
        text = "no detection is in both"
    ours, theirs = len(boxes) - pairs, len(other_boxes) - pairs
    if ours or theirs:
        text += (
            f"; {ours} more in PyTorch and {theirs} more in the file (rounding can decide about "
            "scores close to --conf and boxes close to --iou, and which of nearly equal scores are "
            "the highest)"
        )
    if theirs and predictions is not None:
        text += _compare_with_predictions([output[unpaired] for output in outputs], predictions)
    return text


def _compare_with_predictions(detections: Sequence[Tensor], predictions: Sequence[Tensor]) -> str:
    """Say how many of the file's detections PyTorch predicts, too, before it selects by score."""
    boxes, scores, labels = detections
    all_boxes, all_scores = (tensor.float() for tensor in predictions)
    distance, nearest = torch.cdist(boxes.float(), all_boxes, p=torch.inf).min(1)
    score_diff = (all_scores[nearest, labels] - scores.float()).abs()
    close = distance <= MATCH_PX
    if not close.any():
        return "; PyTorch predicts none of those in the file"
    return (
        f"; before NMS, PyTorch predicts {int(close.sum())} of the {len(boxes)} more in the file: "
        f"{float(distance[close].max()):.2g} px for boxes, {float(score_diff[close].max()):.2g} "
        "for scores"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_cli("export.py", lambda: export(parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
