"""Trains a detector: `python train.py --hyp hyp.yaml`. The whole story, top to bottom; to change the loop, change this file."""

import argparse
import csv
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.dataset import TrainSet, ValSet, collate
from data.formats import Annotations, read_data_config, read_split
from data.sampler import EpochBatches
from data.shapes import make_shapes
from models import MODELS, build_model
from utils.arguments import Parser, at_least
from utils.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from utils.device import has_bf16, peak_memory_gb, select_device
from utils.ema import EMA
from utils.errors import UserError
from utils.hyp import Hyp, load_hyp, save_hyp
from utils.metrics import METRICS, Result, coco_truth, detect, evaluate, table
from utils.plan import planned_scheduler
from utils.plots import draw_batch, draw_predictions, draw_results
from utils.schedulers import draw_plan
from utils.yamlfile import find_file

ROOT = Path(__file__).resolve().parent
DEFAULTS = {
    "hyp": "hyp.yaml", "data": "shapes.yaml", "model": "yolo-n", "weights": None, "epochs": None, "batch_size": None,
    "imgsz": None, "device": "auto", "workers": None, "seed": 0, "project": "runs/train", "name": "exp", "exist_ok": False,
    "resume": None, "patience": 50, "noval": False, "noplots": False,
}  # fmt: skip
WITH_RESUME = {"resume", "project", "device", "workers"}  # what a resumed run may be told; the rest comes from its checkpoint


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    p = Parser(description="Train a detector. Defaults stand in parentheses.", argument_default=argparse.SUPPRESS)
    p.add_argument("--hyp", metavar="FILE", help="hyperparameters: a file, or the name of one in hyp/ (hyp.yaml)")
    p.add_argument("--data", metavar="FILE", help="data set: a data.yaml, or the name of one in data/ (shapes.yaml, built in)")
    p.add_argument("--model", choices=MODELS, metavar="NAME", help=f"{', '.join(MODELS)} (yolo-n)")
    p.add_argument("--weights", metavar="FILE", help="start with this checkpoint's tensors, where name and shape match")
    p.add_argument("--epochs", type=at_least(1), metavar="N", help="passes over the training pictures (the data file's, or 100)")
    p.add_argument("--batch-size", type=at_least(1), metavar="N", help="pictures in a batch (the data file's, or 16)")
    p.add_argument("--imgsz", type=at_least(32), metavar="PX", help="side of a sample, in steps of 32 (the data file's, or 640)")
    p.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (auto: cuda if there is one, else cpu)")
    p.add_argument(
        "--workers", type=at_least(0), metavar="N", help="processes that load data (on CUDA one a core, at most 8; else 0)"
    )
    p.add_argument("--seed", type=at_least(0), metavar="N", help="of everything random (0)")
    p.add_argument("--project", metavar="DIR", help="folder of the run folders (runs/train)")
    p.add_argument("--name", metavar="NAME", help="the run's folder: exp, and if that is taken exp2, exp3, ... (exp)")
    p.add_argument("--exist-ok", action="store_true", help="use the run's folder even if it is taken")
    p.add_argument("--resume", nargs="?", const="", metavar="PATH", help="go on with this run folder or checkpoint (the newest)")
    p.add_argument("--patience", type=at_least(0), metavar="N", help="stop after N epochs with no better mAP50-95; 0: never (50)")
    p.add_argument("--noval", action="store_true", help="validate after the last epoch only")
    p.add_argument("--noplots", action="store_true", help="draw no pictures")
    given = vars(p.parse_args(argv))
    refused = sorted(given.keys() - WITH_RESUME) if "resume" in given else []
    if refused:
        raise UserError(f"--{refused[0].replace('_', '-')}: not with --resume, which goes on with the run's own arguments")
    return argparse.Namespace(**DEFAULTS | given)


def new_run_folder(project: Path, name: str, exist_ok: bool) -> Path:
    folder, number = project / name, 1
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=exist_ok)
            return folder
        except FileExistsError:
            number += 1
            folder = project / f"{name}{number}"
        except OSError as error:
            raise UserError(f"--project {project}: {folder} cannot be made: {error.strerror}") from None


def build_optimizer(model: nn.Module, hyp: Hyp) -> torch.optim.Optimizer:
    """Two groups: the convolutions' weights, which decay, and biases and norms, which do not."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": hyp.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if hyp.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=hyp.lr0, betas=(hyp.momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, lr=hyp.lr0, momentum=hyp.momentum, nesterov=hyp.momentum > 0, fused=True)


def load_matching(model: nn.Module, path: Path) -> None:
    saved, mine = load_checkpoint(path)["average"], model.state_dict()
    matching = {k: v for k, v in saved.items() if k in mine and mine[k].shape == v.shape}
    model.load_state_dict(matching, strict=False)
    print(f"--weights {path}: {len(matching)} of the model's {len(mine)} tensors taken")


def report_faults(split: str, annotations: Annotations) -> None:
    for fault in annotations.faults[:20]:
        print(f"{split}: {fault}", file=sys.stderr)
    if annotations.faults:
        print(f"{split}: {len(annotations.faults)} faults in all; what they name is left out", file=sys.stderr)


def train(args: argparse.Namespace) -> None:
    # Where to go on from: a resumed run has its arguments and hyperparameters in its checkpoint.
    state: dict[str, Any] | None = None
    if args.resume is not None:
        path = Path(args.resume) if args.resume else newest_checkpoint(Path(args.project))
        path = path / "weights" / "last.pt" if path.is_dir() else path
        state = load_checkpoint(path)
        if "optimizer" not in state:
            raise UserError(f"{path}: holds a model without the state of its run; --resume needs a last.pt")
        if state["finished"]:
            raise UserError(f"{path}: this run is finished, after {state['epoch']} epochs; there is nothing to resume")
        own = {k: v for k, v in vars(args).items() if k in ("device", "workers") and v != DEFAULTS[k]}
        args = argparse.Namespace(**state["args"] | own)
        run = path.resolve().parent.parent
        hyp, hyp_file = Hyp(**state["hyp"]), run / "hyp.yaml"
    else:
        hyp_file = find_file(args.hyp, ROOT / "hyp")
        hyp = load_hyp(hyp_file)
    device = select_device(args.device)
    bf16 = has_bf16(device)
    # Where the step itself computes on every core, a process beside it costs more than it brings.
    most = min(8, os.cpu_count() or 1) if device.type != "cpu" else 0
    workers = most if args.workers is None else args.workers
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = True

    # Data.
    args.data = str(find_file(args.data, ROOT / "data").resolve())  # to be found again when resumed from elsewhere
    config = read_data_config(Path(args.data))
    if config.make == "shapes" and make_shapes(Path(config.path)):
        print(f"the built-in data set was drawn into {config.path}")
    train_annotations, val_annotations = read_split(config, "train"), read_split(config, "val")
    names = train_annotations.names
    if val_annotations.names != names:
        raise UserError(f"{args.data}: train has the classes {list(names)}, val has {list(val_annotations.names)}")
    report_faults("train", train_annotations)
    report_faults("val", val_annotations)
    args.epochs, args.batch_size = args.epochs or config.epochs, args.batch_size or config.batch_size
    args.imgsz = -(-(args.imgsz or config.imgsz) // 32) * 32
    train_set = TrainSet(train_annotations, args.imgsz, hyp, args.seed, mosaic_until=args.epochs - hyp.close_mosaic)
    val_set = ValSet(val_annotations, args.imgsz, stride=32)
    batches = EpochBatches(len(train_set), args.batch_size, args.seed)
    loading = {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "collate_fn": collate,
        "pin_memory": device.type == "cuda",
    }
    train_loader = DataLoader(train_set, batch_sampler=batches, **loading)
    val_loader = DataLoader(val_set, batch_size=args.batch_size, **loading)
    a = val_annotations
    truth = coco_truth(a.sizes, a.offsets, a.boxes, a.labels, a.crowd, names)

    # Model, optimizer, schedule, average.
    model = build_model(args.model, len(names), gains=(hyp.box, hyp.cls, hyp.dfl))
    if args.weights and state is None:
        load_matching(model, Path(args.weights))
    model.to(device, memory_format=torch.channels_last)
    optimizer = build_optimizer(model, hyp)
    scheduler, planned = planned_scheduler(hyp, hyp_file, optimizer, args.epochs, batches.sizes, args.batch_size)
    ema = EMA(model, hyp.ema_decay)
    start, rows, best, best_epoch, result = 0, [], -1.0, -1, None

    # Resume, or make the run folder.
    if state is not None:
        model.load_state_dict(state["model"])
        ema.model.load_state_dict(state["average"])
        ema.updates = state["ema_updates"]
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["rng"])
        start, rows, best, best_epoch = state["epoch"], state["rows"], state["best"], state["best_epoch"]
        result = Result(state["result"]["overall"], state["result"]["classes"]) if state["result"] else None
        print(f"{path}: going on with epoch {start} of {args.epochs}")
    else:
        run = new_run_folder(Path(args.project), args.name, args.exist_ok)
        save_hyp(hyp, run / "hyp.yaml")
        (run / "args.yaml").write_text(yaml.safe_dump(vars(args), sort_keys=False), encoding="utf-8")
        if not args.noplots:
            draw_plan(planned, len(batches), run / "lr.png")
            draw_batch(*collate([train_set[key] for key in next(iter(batches))]), names, run / "train_batch.jpg")
    (run / "weights").mkdir(exist_ok=True)
    print(f"{args.model}, {len(names)} classes, {len(train_set)} + {len(val_set)} pictures at {args.imgsz} px, on {device}"
          f"{' in bf16' if bf16 else ''}, into {run}")  # fmt: skip

    for epoch in range(start, args.epochs):
        began = time.time()
        scheduler.step(epoch)
        batches.epoch = epoch
        model.train()
        means = torch.zeros((), device=device)  # of each loss over the epoch so far
        bar = tqdm(train_loader, desc=f"{epoch}/{args.epochs - 1}", unit="batch", disable=None, leave=False)
        for i, (images, targets) in enumerate(bar):
            scheduler.step_batch(len(images))
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                losses = model(images.to(device, non_blocking=True), targets)
            first = i - i % hyp.accumulate  # the batches of one optimizer step: fewer at the epoch's end
            loss = sum(losses.values()) / (min(first + hyp.accumulate, len(batches)) - first)
            loss.backward()
            if (i + 1) % hyp.accumulate == 0 or i + 1 == len(batches):
                if hyp.grad_clip:
                    nn.utils.clip_grad_norm_(model.parameters(), hyp.grad_clip)
                optimizer.step()
                optimizer.zero_grad()
                ema.update(model)
            means = means + (torch.stack(list(losses.values())).detach() - means) / (i + 1)
            if not bar.disable and i % 10 == 0:
                shown = {name: f"{mean:.3f}" for name, mean in zip(losses, means.tolist(), strict=True)}
                shown |= {"lr": f"{scheduler.get_last_lr()[0]:.2e}", "mem": f"{peak_memory_gb(device):.1f}G"}
                bar.set_postfix(shown, images=(i + 1) * len(train_set) // len(batches), refresh=False)
        seconds = time.time() - began

        # Validate the average.
        last = epoch + 1 == args.epochs
        validated = last or not args.noval
        improved = False
        if validated:
            latest = evaluate(truth, detect(ema.model, val_loader, device, bf16))
            if improved := latest.overall["mAP50-95"] > best:
                best, best_epoch, result = latest.overall["mAP50-95"], epoch, latest
        stop = validated and args.patience > 0 and epoch - best_epoch >= args.patience

        # Write down what happened, then the state to go on from.
        row = {"epoch": epoch, **{f"train/{k}": round(v, 5) for k, v in zip(losses, means.tolist(), strict=True)}}
        row |= {f"metrics/{k}": round(latest.overall[k], 5) if validated else None for k in METRICS}
        row |= {f"lr/{g}": lr for g, lr in enumerate(scheduler.get_last_lr())}
        rows.append(row | {"seconds": round(time.time() - began, 2)})
        with (run / "results.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        told = dict(zip(losses, means.tolist(), strict=True)) | (latest.overall if validated else {})
        told = "  ".join(f"{name} {value:.3f}" for name, value in told.items())
        print(f"epoch {epoch}  {told}  lr {scheduler.get_last_lr()[0]:.2e}  {len(train_set) / seconds:.0f} images/s")
        model_only = {"args": vars(args), "hyp": hyp.model_dump(), "names": list(names), "epoch": epoch + 1, "best": best,
                      "average": ema.model.state_dict()}  # fmt: skip
        if improved:
            save_checkpoint(model_only, run / "weights" / "best.pt")
        save_checkpoint(
            model_only | {
                "model": model.state_dict(), "ema_updates": ema.updates, "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(), "rng": torch.get_rng_state(), "best_epoch": best_epoch, "rows": rows,
                "result": vars(result) if result else None, "finished": last or stop,
            }, run / "weights" / "last.pt",
        )  # fmt: skip
        if stop:
            print(f"stopped: no better mAP50-95 for {args.patience} epochs")
            break

    if not args.noplots:
        draw_results(rows, run / "results.png")
        images, targets = next(iter(val_loader))
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            draw_predictions(images, targets, ema.model(images.to(device)), names, run / "val_batch.jpg")
    print(f"best epoch {best_epoch}, written to {run / 'weights' / 'best.pt'}\n{table(result)}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit status: 0, 2 after one sentence on stderr for a user's mistake, 130 after Ctrl-C."""
    try:
        train(parse_args(argv))
    except UserError as error:
        # One that a loader's process raised comes with that process's traceback before the sentence.
        print(f"train.py: {str(error).rstrip().rpartition('UserError: ')[2]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted; --resume goes on after the last whole epoch", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
