"""Trains a detector: `python train.py --hyp hyp.yaml`. The whole story, top to bottom; to change the loop, change this file."""

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from data.augment import apply_color_matrix
from data.config import read_data_config
from data.dataset import TrainSet, ValSet, collate, preload_images
from data.formats import images_in_both_splits, read_train_val
from data.images import read_image
from data.sampler import EpochBatchSampler
from models import build_model, load_initial_weights
from models.freezing import freeze
from options import DEFAULTS, parse_args
from utils.anomaly import detect_anomaly
from utils.auto_batch import largest_batch
from utils.checkpoint import checkpoint_errors, load_checkpoint
from utils.cli import command_line, imgsz_bounds, imgsz_warning, round_imgsz
from utils.device import (
    default_workers,
    disable_malloc_trim,
    peak_memory_gb,
    prefers_bf16,
    select_device,
    set_deterministic,
)
from utils.distributed import DistributedContext, convert_sync_batchnorm
from utils.ema import EMA
from utils.errors import UserError, run_cli
from utils.hyp import Hyp, load_hyp
from utils.interrupt import Interrupted, StopSignals, worker_init
from utils.metrics import METRICS, Result, evaluate, format_table, run_inference, to_coco_gt
from utils.optimizers import build_optimizer
from utils.plan import build_checked_scheduler, check_lr
from utils.plots import draw_batch, draw_plan, draw_predictions, draw_results
from utils.report import SCORE, write_report
from utils.resume import (
    check_data_unchanged,
    checkpoint_to_resume,
    environment_diff,
    numerics_environment,
    resume_args,
)
from utils.run_dir import RunDir, new_run_dir, run_dir_of
from utils.seeds import seed_everything
from utils.tensorboard import TensorBoardLogger
from utils.yamlfile import find_file

ROOT = Path(__file__).resolve().parent
MOST_SKIPPED = 10  # steps in a row that are not finite, until a run stops


def train(given: dict[str, Any], stop: StopSignals) -> None:
    args = argparse.Namespace(**DEFAULTS | given)
    processes = DistributedContext()
    first = processes.first  # the one of the processes that prints and writes
    say = print if first else lambda *_, **__: None
    warn = (
        (lambda *sentences: [print(sentence, file=sys.stderr) for sentence in sentences])
        if first
        else say
    )

    # Where to go on from: a resumed run has its arguments and hyperparameters in its checkpoint.
    state: dict[str, Any] | None = None
    if path := processes.on_main(checkpoint_to_resume, args):
        state = load_checkpoint(path)
        with checkpoint_errors(path):
            was = state["args"] = DEFAULTS | state["args"]
            args = argparse.Namespace(**resume_args(state, path, given, ROOT / "hyp"))
            hyp, hyp_file = Hyp(**state["hyp"]), run_dir_of(path) / "hyp.yaml"
            if (
                state["finished"] and args.epochs == was["epochs"]
            ):  # and `auto` asked for no more than that
                say(f"{path}: this run is finished, after {state['epoch']} epochs")
                return processes.leave()
    else:
        hyp = load_hyp(hyp_file := find_file(args.hyp, ROOT / "hyp"))
    device = select_device(args.device, processes.local_rank)
    bf16 = prefers_bf16(device)
    dtype = torch.bfloat16 if bf16 else torch.float32
    workers = (
        default_workers(device, processes.local_world_size)
        if args.workers is None
        else args.workers
    )
    set_deterministic(exact := args.deterministic or device.type == "cpu")
    disable_malloc_trim()
    torch.manual_seed(args.seed)

    # Data.
    args.data = str(
        find_file(args.data, ROOT / "data").resolve()
    )  # to be found again when resumed from elsewhere
    config = read_data_config(Path(args.data))
    train_data, val_data = read_train_val(config, args.data)
    names, content = train_data.names, {"train": train_data.summary(), "val": val_data.summary()}
    check_data_unchanged(state and state["content"], content, args.data)
    warn(
        *train_data.report("train"),
        *val_data.report("val"),
        *images_in_both_splits(train_data, val_data),
    )
    if args.strict_data and (faults := len(train_data.errors) + len(val_data.errors)):
        raise UserError(f"{args.data}: {faults} faults, --strict-data allows none")
    args.epochs, args.batch_size = (
        args.epochs or config.epochs,
        args.batch_size or config.batch_size,
    )
    warn(*imgsz_warning(args.imgsz or config.imgsz))
    args.imgsz = round_imgsz(args.imgsz or config.imgsz)
    sides = imgsz_bounds(args.imgsz)
    model = build_model(args.model, len(names), args.backbone, gains=(hyp.box, hyp.cls, hyp.dfl))
    if args.batch_size == "auto":
        args.batch_size = (
            processes.on_main(largest_batch, model, sides[1], device, bf16) * processes.count
        )
    train_set = TrainSet(
        train_data, hyp, args.seed, mosaic_until=args.epochs - hyp.close_mosaic, cache=args.cache
    )
    val_set = ValSet(val_data, sides[1], stride=32, cache=args.cache)
    preload_images([train_set, val_set], args.cache, processes)
    if "batch_size" in given and args.batch_size > len(train_set):
        warn(
            f"--batch-size {args.batch_size}: there are {len(train_set)} pictures to train on, so a batch has {len(train_set)}"
        )
    batches = EpochBatchSampler(
        len(train_set), args.batch_size, sides, args.seed, processes.rank, processes.count
    )
    loading = {"num_workers": workers, "persistent_workers": workers > 0, "worker_init_fn": worker_init,
               "collate_fn": collate, "pin_memory": device.type == "cuda"}  # fmt: skip
    train_loader = DataLoader(train_set, batch_sampler=batches, **loading)
    share = Subset(val_set, range(processes.rank, len(val_set), processes.count))
    val_loader = DataLoader(share, batch_size=-(-args.batch_size // processes.count), **loading)
    truth = to_coco_gt(
        val_data.sizes, val_data.offsets, val_data.boxes, val_data.labels, val_data.crowd, names
    )

    # Model, optimizer, schedule, average.
    say("" if state else load_initial_weights(model, args.weights, args.pretrained), end="")
    if args.sync_bn:
        model = convert_sync_batchnorm(model, device)
    still = freeze(model, args.freeze) if args.freeze else []
    model.to(device, memory_format=torch.channels_last)
    optimizer = build_optimizer(model, hyp, dtype)
    scheduler, planned, notes = build_checked_scheduler(
        hyp, hyp_file, optimizer, args.epochs, batches.sizes, args.batch_size
    )
    warn(*notes)
    ema = EMA(model, hyp.ema_decay)
    board = TensorBoardLogger(first and args.tensorboard)
    start, spent, rows, best, best_epoch, result, stopped, sure = (
        0,
        0.0,
        [],
        -1.0,
        -1,
        None,
        False,
        torch.zeros(0, 7),
    )
    skipped, in_a_row = (
        0,
        0,
    )  # optimizer steps that were not taken, for their numbers were not finite

    # Resume, or make the run folder: from here on a signal is answered after the batch under way.
    stop.deferred = True
    about = numerics_environment(device, bf16, processes.count)
    if state is not None:
        run = RunDir(run_dir_of(path))
        with checkpoint_errors(path):
            model.load_state_dict(state["model"])
            ema.model.load_state_dict(state["average"])
            optimizer.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
            scheduler.extend(args.epochs)
            start, batches.start, ema.updates = (
                int(state[k]) for k in ("epoch", "batch", "ema_updates")
            )
            spent, best, best_epoch = (
                float(state["seconds"]),
                float(state["best"]),
                int(state["best_epoch"]),
            )
            rows, stopped = state["rows"], state["stopped"]
            skipped, in_a_row = state.get("skipped", (0, 0))
            result, sure = (
                Result(**state["result"]) if state["result"] else None,
                state.get("detections", sure),
            )
            losses, means = (
                state["losses"],
                torch.tensor([*state["losses"].values()], device=device),
            )
        say(
            f"{path}: going on with epoch {start} of {args.epochs}, after {batches.start} of its {len(batches)} batches"
        )
        if args.epochs != was["epochs"]:
            say(
                f"--epochs {args.epochs}: from here on the schedule is that of {args.epochs} epochs in place of {was['epochs']}"
            )
        if changed := environment_diff(state["arithmetic"], about):
            warn(
                f"{path}: was computed with {changed}: the run goes on where it was, but not to the same bits"
            )
    else:
        taken = args.exist_ok or args.resume == "auto"
        run = RunDir(processes.on_main(new_run_dir, Path(args.project), args.name, taken))
    if first:
        run.write_yaml(hyp=hyp.model_dump(), args=vars(args))
    if first and not args.noplots:
        draw_plan(planned, len(batches), run.path / "lr.png")
        if state is None:
            images, targets = collate(train_set.__getitems__(next(iter(batches))))
            draw_batch(
                apply_color_matrix(images, [t["color"] for t in targets], dtype),
                targets,
                names,
                run.path / "train_batch.jpg",
            )
    del state  # its memory
    board.open(run.path, start)
    torch.autograd.set_detect_anomaly(args.detect_anomaly)
    if args.detect_anomaly:
        detect_anomaly(model)
    trained = processes.parallel(model, same_order=exact)
    say(f"{args.model}, {len(names)} classes, {len(train_set)} + {len(val_set)} pictures at {args.imgsz} px, on {device}"
        f"{' in bf16' if bf16 else ''}, processes: {processes.count}, into {run.path}")  # fmt: skip

    def save(epoch: int, batch: int, improved: bool = False, finished: bool = False) -> bool:
        """Write down all that the run needs to go on with batch `batch` of epoch `epoch`; False if that fails, and says why."""
        state = first and {
            "args": vars(args), "hyp": hyp.model_dump(), "names": list(names), "content": content, "arithmetic": about,
            "epoch": epoch, "batch": batch, "losses": dict(zip(losses, means.tolist(), strict=True)) if batch else {},
            "seconds": time.monotonic() - began if batch else 0.0, "rows": rows, "best": best, "best_epoch": best_epoch,
            "result": vars(result) if result else None, "detections": sure, "stopped": stopped, "finished": finished,
            "skipped": (skipped, in_a_row),
            "model": model.state_dict(), "average": ema.model.state_dict(), "ema_updates": ema.updates,
            "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(),
        }  # fmt: skip
        if problem := first and run.save(state, improved):
            warn(f"train.py: {problem}; the last checkpoint stays as it is")
        return not problem

    def stop_if_asked(epoch: int, batch: int) -> None:
        if number := processes.all_reduce_max(stop.received):
            goes_on = "there" if save(epoch, batch) else "after the last checkpoint"
            processes.leave()  # not before the first one has written
            where = f"after {batch} of the {len(batches)} batches of epoch {epoch}; --resume goes on {goes_on}"
            raise Interrupted(number, where if first else "")

    began = time.monotonic() - spent
    save(
        start, batches.start
    )  # whether there is room is told now, and a kill finds the run as it was asked for
    for epoch in range(start, 0 if stopped else args.epochs):
        began = time.monotonic() - spent
        seed_everything(args.seed, epoch)
        batches.epoch = epoch
        scheduler.step(epoch)
        if not batches.start:  # else the epoch goes on where it was left
            means = torch.zeros((), device=device)  # of each loss over the epoch so far
        trained.train()
        [part.eval() for part in still]
        bar = tqdm(train_loader, f"{epoch}/{args.epochs - 1}", len(batches), initial=batches.start, unit="batch", leave=False,
                   disable=None if first else True)  # fmt: skip
        for i, (images, targets) in enumerate(bar, batches.start):
            seed_everything(args.seed, epoch, i, processes.rank)
            scheduler.step_batch(batches.sizes[i])
            check_lr(scheduler, planned, epoch, i)
            window = (
                i - i % hyp.accumulate
            )  # where the batches of this optimizer step begin; fewer at the epoch's end
            steps = i + 1 == min(window + hyp.accumulate, len(batches))
            trained.require_backward_grad_sync = (
                steps  # several processes exchange gradients once a step
            )
            images = apply_color_matrix(
                images.to(device, non_blocking=True), [t["color"] for t in targets], dtype
            )
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                losses = trained(images, targets)
            loss = sum(losses.values()) / (min(window + hyp.accumulate, len(batches)) - window)
            loss.backward()
            latest = processes.mean(torch.stack([*losses.values()]).detach())
            means = means + (torch.where(latest.isfinite(), latest, means) - means) / (i + 1)
            total = latest.sum() + (total if i > window else 0.0)  # noqa: F821 - of this optimizer step's batches
            if steps:
                norm = nn.utils.clip_grad_norm_(model.parameters(), hyp.grad_clip or math.inf)
                if math.isfinite(total + norm):  # the one number that a step asks a GPU for
                    optimizer.step()
                    ema.update(model)
                    in_a_row = 0
                else:  # the weights stay as they are, and so do the norms' statistics
                    ema.restore_buffers(model)
                    skipped, in_a_row = skipped + 1, in_a_row + 1
                    warn(f"epoch {epoch}, batch {i}: the loss {total:.3g} or its gradient {norm:.3g} is not finite: step "
                         f"skipped, {skipped} so far; with {train_data.image_names(batches.images(window, i))}")  # fmt: skip
                    if in_a_row == MOST_SKIPPED:
                        raise UserError(f"{run.path}: {in_a_row} steps in a row were not finite, up to epoch {epoch}, batch {i}; "
                                        "last.pt is from before; --detect-anomaly says where it begins")  # fmt: skip
                optimizer.zero_grad()
                stop_if_asked(epoch, i + 1)
                if (
                    first
                    and args.save_every
                    and time.monotonic() - run.saved > args.save_every * 60
                    and not in_a_row
                ):
                    save(epoch, i + 1)
            if not bar.disable and i % 10 == 0:
                shown = {
                    name: f"{mean:.3f}" for name, mean in zip(losses, means.tolist(), strict=True)
                }
                shown |= {
                    "lr": f"{scheduler.get_last_lr()[0]:.2e}",
                    "mem": f"{peak_memory_gb(device):.1f}G",
                }
                bar.set_postfix(shown, images=int(batches.bounds[i + 1]), refresh=False)
        seconds = time.monotonic() - began

        # Validate the average.
        last = epoch + 1 == args.epochs
        validated, improved = last or not args.noval, False
        if validated:
            processes.broadcast_buffers(ema.model)
            found = run_inference(ema.model, stop.stop_on_signal(val_loader), device, bf16)
            stop_if_asked(epoch, len(batches))
            found = processes.gather(found)
            latest = processes.on_main(evaluate, truth, found)
            if improved := latest.overall["mAP50-95"] > best:
                best, best_epoch, result = latest.overall["mAP50-95"], epoch, latest
                sure = torch.from_numpy(found[found[:, 5] > SCORE]).float()  # for the report
        stopped = (
            validated and not last and args.patience > 0 and epoch - best_epoch >= args.patience
        )

        # Write down what happened, and the state to go on from.
        row = {
            "epoch": epoch,
            **{f"train/{k}": round(v, 5) for k, v in zip(losses, means.tolist(), strict=True)},
        }
        row |= {f"metrics/{k}": round(latest.overall[k], 5) if validated else None for k in METRICS}
        row |= {f"lr/{g}": lr for g, lr in enumerate(scheduler.get_last_lr())}
        rows.append(row | {"seconds": round(time.monotonic() - began, 2)})
        board.row(rows[-1])
        told = dict(zip(losses, means.tolist(), strict=True)) | (
            latest.overall if validated else {}
        )
        told = "  ".join(f"{name} {value:.3f}" for name, value in told.items())
        say(
            f"epoch {epoch}  {told}  lr {scheduler.get_last_lr()[0]:.2e}  {len(train_set) / seconds:.0f} images/s"
        )
        batches.start, spent = 0, 0.0
        save(epoch + 1, 0, improved)
        if stopped:
            say(f"stopped: no better mAP50-95 for {args.patience} epochs")
            break
        if not last:
            stop_if_asked(epoch + 1, 0)

    if skipped:
        warn(
            f"steps of this run that were skipped, for their loss or gradient was not finite: {skipped}"
        )

    # Only a run with its pictures is finished.
    if first and not args.noplots:
        draw_results(rows, run.path / "results.png")
        images, targets = next(iter(val_loader))
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            draw_predictions(
                images, targets, ema.model(images.to(device)), names, run.path / "val_batch.jpg"
            )
        command = command_line("train.py", vars(args), DEFAULTS)
        write_report(
            run.path,
            command,
            about,
            hyp,
            rows,
            planned,
            len(batches),
            result,
            truth,
            sure,
            val_data.files,
            read_image,
        )
    board.close(run.path, len(rows) - 1)
    if not processes.on_main(save, len(rows), 0, False, True):
        raise UserError(
            f"{run.path}: is trained, but not written to the end; --resume does that once there is room"
        )
    say(
        f"best epoch {best_epoch}, written to {run.path / 'weights' / 'best.pt'}\n{format_table(result)}"
    )
    processes.leave()


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit status: 0, 2 after one sentence on stderr for a user's mistake, 128 + a signal's number."""
    try:
        with StopSignals() as stop:
            return run_cli("train.py", lambda: train(parse_args(argv), stop))
    except Interrupted as error:
        if str(error):
            print(f"train.py: {error}", file=sys.stderr)
        return 128 + error.number


if __name__ == "__main__":
    sys.exit(main())
