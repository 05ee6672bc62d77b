"""`--resume`: which checkpoint a run goes on from, and whether what the command says beside it is what that run is."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError
from utils.hyp import Hyp, load_hyp
from utils.letterbox import imgsz_bounds
from utils.run_dir import latest_checkpoint, run_dir_of
from utils.yamlfile import find_file

# May be other than they were; the data must have the same content.
RESUME_OVERRIDABLE = (
    "data",
    "device",
    "workers",
    "cache",
    "save_every",
    "noplots",
    "tensorboard",
    "strict_data",
    "detect_anomaly",
)
STATE = (  # what a last.pt holds; a fork may add to it
    "args", "hyp", "names", "content", "arithmetic", "epoch", "batch", "losses", "seconds", "rows", "best", "best_epoch",
    "result", "stopped", "finished", "model", "average", "ema_updates", "optimizer", "scheduler",
)  # fmt: skip
LOCATION_ARGS = ("resume", "project", "name", "exist_ok")  # say where the run is, not what it is


def checkpoint_to_resume(args: Namespace) -> Path | None:
    """The checkpoint that `args.resume` names: "" the newest below `project`, "auto" the last one of `project`/`name` if it has
    one, anything else a run folder or a file. None for a run that starts.

    Raises UserError when "" finds nothing.
    """
    if args.resume is None:
        return None
    if args.resume == "auto":
        path = Path(args.project) / args.name / "weights" / "last.pt"
        return path if path.exists() else None
    path = Path(args.resume) if args.resume else latest_checkpoint(Path(args.project))
    return path / "weights" / "last.pt" if path.is_dir() else path


def resume_args(
    state: Mapping[str, Any], path: Path, given: Mapping[str, Any], hyp_folder: Path
) -> dict[str, Any]:
    """The arguments of the run that `state` from `path` belongs to, with those `given` that may change: `FREE` ones, and more
    `epochs`. Hyp files are looked for in `hyp_folder`, too.

    Raises UserError, naming the first argument that contradicts the run's, or when the state cannot be gone on from.
    """
    if "optimizer" not in state:
        raise UserError(
            f"{path}: holds a model without the state of its run; --resume needs a last.pt"
        )
    if lacking := [key for key in STATE if key not in state]:
        raise UserError(
            f"{path}: holds no state that this version can go on from: {', '.join(lacking)} missing"
        )
    own, folder = dict(state["args"]), run_dir_of(path)
    for key, value in given.items():
        flag = f"--{key.replace('_', '-')}"
        if key in LOCATION_ARGS:
            parts = Path(value).parts
            named_so = key != "name" or parts == folder.parts[-len(parts) :]
            in_there = key != "project" or folder.resolve().is_relative_to(Path(value).resolve())
            if given["resume"] != "auto" and not (
                named_so and in_there
            ):  # `auto` has found it by these two
                raise UserError(f"{flag} {value}: the run to resume is {folder}")
        elif key == "hyp":
            _same_hyp(Path(find_file(value, hyp_folder)), Hyp(**state["hyp"]), folder)
        elif key == "epochs" and value > own["epochs"] and state["stopped"]:
            raise UserError(
                f"{flag} {value}: {folder} was stopped by --patience after {state['epoch']} epochs; start anew"
            )
        elif key in RESUME_OVERRIDABLE or (key == "epochs" and value > own["epochs"]):
            own[key] = value
        elif key == "imgsz" and imgsz_bounds(value) == imgsz_bounds(own[key]):
            continue  # the run has what was asked for, rounded
        elif value != own[key]:
            may = f"{own[key]} or more" if key == "epochs" else own[key]
            raise UserError(f"{flag} {value}: {folder} was started with {may}, and goes on so")
    if state["finished"] and own["epochs"] == state["args"]["epochs"] and given["resume"] != "auto":
        raise UserError(
            f"{path}: this run is finished, after {state['epoch']} epochs; there is nothing to resume"
        )
    return own


def _same_hyp(path: Path, hyp: Hyp, folder: Path) -> None:
    given, own = load_hyp(path).model_dump(), hyp.model_dump()
    for key, value in own.items():
        if given[key] != value:
            raise UserError(
                f"--hyp {path}: {key} is {given[key]}, but {folder} was started with {value}, and goes on so"
            )


def check_data_unchanged(
    before: Mapping[str, str] | None, now: Mapping[str, str], data: str
) -> None:
    """Raise UserError, naming the file `data` and the split, unless each split's summary is what it was when the run started;
    `before` is None for one that starts."""
    for split, summary in now.items():
        if before and summary != before[split]:
            raise UserError(
                f"{data}: {split} has {summary}, but the run to resume was started with {before[split]}"
            )


def numerics_environment(device: torch.device, bf16: bool, processes: int) -> dict[str, str | int]:
    """What the last bits of a sum depend on besides the program: the version, the chip, threads and processes."""
    facts = {
        "torch": str(torch.__version__),
        "device": device.type,
        "bf16": bf16,
        "processes": processes,
    }
    if device.type == "cpu":
        facts |= {
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        }
    if device.type == "cuda":
        facts |= {"GPU": torch.cuda.get_device_name(device)}
    return facts


def environment_diff(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What of `arithmetic` is not as it was, as a text; "" if nothing is."""
    return ", ".join(
        f"{key} {before.get(key)} (now {value})"
        for key, value in now.items()
        if before.get(key) != value
    )
