"""`--resume`: the checkpoint a run continues from, and the arguments it continues with."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision

from utils.amp import amp_name
from utils.checkpoint import HEADER, checkpoint_errors, load_checkpoint
from utils.distributed import DistributedContext
from utils.errors import UserError
from utils.hyp import Hyp, load_hyp
from utils.letterbox import imgsz_bounds
from utils.log import plural
from utils.run_dir import latest_checkpoint, run_dir_of, saved_checkpoints
from utils.yamlfile import find_file

# Arguments that may differ from the run's; the data must have the same content.
RESUME_OVERRIDABLE = (
    "data", "device", "workers", "cache", "save_every", "save_period", "noplots", "tensorboard",
    "strict_data", "detect_anomaly", "cuda_graphs", "threads",
)  # fmt: skip
LOCATION_ARGS = ("resume", "project", "name", "exist_ok")  # where the run is, not what it is


@dataclass(frozen=True)
class Start:
    """What a run starts with: `args` and `hyp`, which a resumed run takes from its checkpoint."""

    args: Namespace
    hyp: Hyp
    hyp_file: Path  # for messages
    path: Path | None = None  # the checkpoint's; None for a new run
    checkpoint: Mapping[str, Any] | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the run to resume has nothing left to do."""
        if self.checkpoint is None:
            return False
        same_epochs = self.args.epochs == self.checkpoint["args"]["epochs"]
        return same_epochs and self.checkpoint["progress"]["finished"]


def start_or_resume(
    args: Namespace, overrides: Mapping[str, Any], hyp_dir: Path, dist: DistributedContext
) -> Start:
    """Load the hyp file of a new run, or the checkpoint that `args.resume` names.

    `overrides` are the arguments that the command gives. Hyp files are also looked for in
    `hyp_dir`. Raises UserError when there is nothing to resume, or when an argument contradicts the
    run to resume.
    """
    path = dist.on_main(checkpoint_to_resume, args)
    if path is None:
        hyp_file = find_file(args.hyp, hyp_dir, "--hyp")
        return Start(args, load_hyp(hyp_file), hyp_file)
    checkpoint = load_checkpoint(path)
    with checkpoint_errors(path):
        # An argument that was added to the code since the run was started gets its default.
        resumed = Namespace(**vars(args) | resume_args(checkpoint, path, overrides, hyp_dir))
        world_size = checkpoint["environment"].get("world_size", dist.world_size)
        if world_size != dist.world_size and "threads" not in overrides:
            resumed.threads = None  # chosen anew: each of more processes has fewer CPUs
        hyp = saved_hyp(checkpoint)
    return Start(resumed, hyp, run_dir_of(path) / "hyp.yaml", path, checkpoint)


def saved_hyp(checkpoint: Mapping[str, Any]) -> Hyp:
    """Return the hyperparameters of a run; one that was started before `small_epochs` has none."""
    return Hyp(**{"small_epochs": 0} | checkpoint["hyp"])


def checkpoint_to_resume(args: Namespace) -> Path | None:
    """Return the checkpoint that `args.resume` names, or None for a new run.

    "" is the newest below `project`; "auto" the last one of `project`/`name` if it has one;
    anything else a run directory or a file. Raises UserError when "" finds nothing, or a new run,
    which "auto" would start, would delete other checkpoints.
    """
    if args.resume is None:
        return None
    if args.resume == "auto":
        path = Path(args.project) / args.name / "weights" / "last.pt"
        if path.exists():
            return path
        others = saved_checkpoints(path.parent.parent)
        if others and not args.exist_ok:
            raise UserError(
                f"--resume auto: {path.parent} has {others[0].name} and no last.pt (choose another "
                "--name; with --exist-ok a new run deletes it)"
            )
        return None
    path = Path(args.resume) if args.resume else latest_checkpoint(Path(args.project))
    return path / "weights" / "last.pt" if path.is_dir() else path


def resume_args(
    checkpoint: Mapping[str, Any], path: Path, overrides: Mapping[str, Any], hyp_dir: Path
) -> dict[str, Any]:
    """Return the arguments of the run in `checkpoint`, read from `path`, with those `overrides`
    that may change: `RESUME_OVERRIDABLE`, and more `epochs`.

    Raises UserError that names the first argument that contradicts the run's.
    """
    if "optimizer" not in checkpoint:
        raise UserError(f"{path}: has no training state (--resume needs a last.pt)")
    if missing := sorted({*HEADER} - checkpoint.keys()):
        raise UserError(f"{path}: has no {', '.join(missing)} (--resume needs a last.pt)")
    saved_args, run_dir, progress = checkpoint["args"], run_dir_of(path), checkpoint["progress"]
    stride = checkpoint.get("stride", 32)
    args = {"threads": checkpoint["environment"].get("threads")} | saved_args
    args["detect_anomaly"] = False  # only where it is asked for: it slows a run, and may end it
    for key, value in overrides.items():
        flag = f"--{key.replace('_', '-')}" + ("" if value is True else f" {value}")
        if key in LOCATION_ARGS:
            if overrides["resume"] != "auto":  # `auto` has found the run by them
                _check_location(key, value, flag, run_dir)
        elif key == "hyp":
            _check_same_hyp(find_file(value, hyp_dir, "--hyp"), saved_hyp(checkpoint), run_dir)
        elif key == "epochs" and value > saved_args["epochs"] and progress["early_stopped"]:
            raise UserError(
                f"{flag}: {run_dir} was early-stopped after {plural(progress['epoch'], 'epoch')} "
                "(start a new run)"
            )
        elif key in RESUME_OVERRIDABLE or (key == "epochs" and value > saved_args["epochs"]):
            args[key] = value
        elif not _same_value(key, value, saved := saved_args.get(key), stride):
            hint = f"need {saved} or more" if key == "epochs" else "leave it out"
            raise UserError(
                f"{flag}: conflicts with {run_dir}, which was started {_started_with(saved)} "
                f"({hint}, or start a new run)"
            )
    is_finished = progress["finished"] and args["epochs"] == saved_args["epochs"]
    if is_finished and overrides["resume"] != "auto":
        hint = "start a new run" if progress["early_stopped"] else "a larger --epochs continues it"
        raise UserError(
            f"{path}: this run finished after {plural(progress['epoch'], 'epoch')} ({hint})"
        )
    return args


def _started_with(saved: Any) -> str:
    """Return how a run was started that has the value `saved` of an argument."""
    if saved is None or saved is False:
        return "without it"
    return "with it" if saved is True else f"with {saved}"


def _check_location(key: str, value: Any, flag: str, run_dir: Path) -> None:
    """Raise UserError if the value of one of `LOCATION_ARGS` is not where the run is."""
    is_other = False
    if key == "name":
        parts = Path(value).parts
        is_other = parts != run_dir.parts[-len(parts) :]
    elif key == "project":
        is_other = not run_dir.resolve().is_relative_to(Path(value).resolve())
    if is_other:
        raise UserError(
            f"{flag}: the run to resume is {run_dir} (leave the argument out, or resume another "
            "run with --resume RUN)"
        )


def _same_value(key: str, value: Any, saved: Any, stride: int) -> bool:
    if key == "imgsz":  # the run has what was asked for, rounded to the model's stride
        return imgsz_bounds(value, stride) == imgsz_bounds(saved, stride)
    if key == "batch_size" and value == "auto":  # the run has the number that auto found
        return True
    return value == saved


def _check_same_hyp(path: Path, saved: Hyp, run_dir: Path) -> None:
    new = load_hyp(path).model_dump()
    for key, value in saved.model_dump().items():
        if new[key] != value:
            raise UserError(
                f"--hyp {path}: {key} {new[key]} conflicts with {run_dir}, "
                f"which was started with {value} (leave --hyp out, or start a new run)"
            )


def check_data_unchanged(saved: Mapping[str, str], current: Mapping[str, str], data: str) -> None:
    """Raise UserError, naming the file `data` and the split, unless every split's fingerprint is
    the `saved` one."""
    for split, fingerprint in current.items():
        if fingerprint != saved[split]:
            raise UserError(
                f"{data}: {split} has {fingerprint}, but the run to resume was started with "
                f"{saved[split]} (bring the data back, or start a new run with --weights)"
            )


def numerics_environment(
    device: torch.device, dtype: torch.dtype, world_size: int, libraries: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what the last bits of a sum depend on: versions, hardware, threads, processes.

    libraries: those whose versions matter besides these.
    """
    environment = {
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,  # its random numbers
        "Pillow": PIL.__version__,
        "device": device.type,
        "amp": amp_name(dtype),
        "world_size": world_size,
    }
    if device.type == "cpu":
        environment["instructions"] = torch.backends.cpu.get_cpu_capability()
        environment["threads"] = torch.get_num_threads()
    if device.type == "cuda":
        environment["GPU"] = torch.cuda.get_device_name(device)
    return environment | {library: version(library) for library in libraries}


def environment_diff(saved: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """Return what differs between two `numerics_environment`s, as text; "" if nothing does.

    Keys that are not in `saved`, such as the GPU of a run without one, are ignored.
    """
    return ", ".join(
        f"{key} {saved[key]} -> {value}"
        for key, value in current.items()
        if saved.get(key, value) != value
    )


def resume_warnings(start: Start, environment: Mapping[str, Any]) -> list[str]:
    """Return what makes a resumed run differ from an uninterrupted one."""
    messages = []
    epochs = start.checkpoint["args"]["epochs"]
    if start.args.epochs != epochs:
        message = f"the schedule from here on is that of {start.args.epochs} epochs, not {epochs}"
        messages.append(f"--epochs {start.args.epochs}: {message}")
    if changes := environment_diff(start.checkpoint["environment"], environment):
        message = f"environment changed ({changes}): results may not be bitwise identical"
        messages.append(f"{start.path}: {message}")
    return messages
