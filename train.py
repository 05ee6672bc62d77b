"""Train an object detector.

    python train.py --hyp hyp.yaml                                  # the built-in dataset
    python train.py --data mine/data.yaml --epochs 100 --imgsz 640  # your own
    python train.py --resume                                        # continue the latest run
    torchrun --standalone --nproc_per_node 4 train.py --data ...    # several GPUs

Read it top to bottom: build() turns arguments into objects, train_one_epoch() has the training
step, validate() evaluates the EMA, main() is the story. To change the loop, change this file.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from data.augment import apply_color_matrix
from data.config import read_data_config
from data.dataset import TrainSet, ValSet, collate, preload_images
from data.formats import Annotations, images_in_both_splits, read_train_val
from data.images import read_image
from data.sampler import EpochBatchSampler
from data.shapes import make_builtin
from models import Detector, build_model
from models.freezing import freeze
from models.weights import load_initial_weights
from options import defaults, parse_args
from utils.anomaly import detect_anomaly
from utils.auto_batch import largest_batch
from utils.checkpoint import Part, restore
from utils.checkpointer import Checkpointer
from utils.cli import cli_command
from utils.device import default_workers, prefers_bf16, select_device, set_deterministic
from utils.distributed import DistributedContext, convert_sync_batchnorm
from utils.ema import EMA
from utils.errors import UserError
from utils.hyp import Hyp
from utils.inference import run_inference
from utils.interrupt import StopSignals, kill_workers_at_exit, worker_init
from utils.letterbox import imgsz_bounds, imgsz_warning, round_imgsz
from utils.log import info, set_main, stage, warning
from utils.memory import disable_malloc_trim, peak_memory_gb
from utils.metrics import METRICS, evaluate, format_table, to_coco_gt
from utils.optimizers import build_optimizer
from utils.plan import LRPlan, build_checked_scheduler, check_lr
from utils.plots import draw_batch, draw_plan, draw_predictions, draw_results
from utils.progress import Progress
from utils.report import MIN_SCORE, RunSummary, command_line, write_report
from utils.resume import Start, check_data_unchanged, environment_diff, numerics_environment
from utils.resume import start_or_resume
from utils.run_dir import RunDir, new_run_dir, run_dir_of
from utils.schedulers import BatchWarmup
from utils.seeds import seed_everything
from utils.tensorboard import TensorBoardLogger
from utils.yamlfile import find_file

ROOT = Path(__file__).resolve().parent
MAX_CONSECUTIVE_SKIPS = 10  # optimizer steps with non-finite numbers, after which a run stops


@dataclass
class Run:
    """The objects of a run, as `build` makes them."""

    args: argparse.Namespace
    hyp: Hyp
    dist: DistributedContext
    stop: StopSignals
    device: torch.device
    bf16: bool
    environment: dict[str, object]

    train_data: Annotations
    val_data: Annotations
    train_set: TrainSet
    sampler: EpochBatchSampler
    train_loader: DataLoader
    val_loader: DataLoader  # this process's shard
    coco_gt: dict[str, object]  # the ground truth of the validation split, as a COCO dataset

    model: Detector
    ddp_model: nn.Module  # `model` itself in a single process
    frozen_modules: list[nn.Module]
    ema: EMA
    optimizer: torch.optim.Optimizer
    scheduler: BatchWarmup
    lr_plan: list[Sequence[float]]  # of each parameter group: the learning rate at every batch
    progress: Progress
    parts: dict[str, Part]  # everything that is saved and restored, by name

    run_dir: RunDir
    checkpointer: Checkpointer
    tensorboard: TensorBoardLogger


def build(start: Start, overrides: dict[str, object], dist: DistributedContext, stop: StopSignals) -> Run:
    """Turn arguments into objects; restore them from the checkpoint if the run is resumed.

    Raises UserError for anything in the arguments, hyp file, data or checkpoint that is wrong.
    """
    args, hyp, checkpoint = start.args, start.hyp, start.checkpoint
    stage("device")
    device = select_device(args.device, dist.local_rank)
    bf16 = prefers_bf16(device)
    dtype = torch.bfloat16 if bf16 else torch.float32
    same_order = args.deterministic or device.type == "cpu"
    set_deterministic(same_order)
    disable_malloc_trim()
    torch.manual_seed(args.seed)

    stage("data")
    args.data = str(find_file(args.data, ROOT / "data").resolve())  # resumed from another directory
    config = read_data_config(Path(args.data))
    if dist.on_main(make_builtin, config):
        info(f"drew the built-in dataset into {config.path}")
    train_data, val_data = read_train_val(config, args.data)
    class_names = train_data.class_names
    fingerprint = {"train": train_data.fingerprint(), "val": val_data.fingerprint()}
    check_data_unchanged(checkpoint and checkpoint["data_fingerprint"], fingerprint, args.data)
    warning(*train_data.messages("train"), *val_data.messages("val"))
    warning(*images_in_both_splits(train_data, val_data))
    num_errors = len(train_data.errors) + len(val_data.errors)
    if args.strict_data and num_errors:
        raise UserError(f"{args.data}: {num_errors} invalid images or annotations (--strict-data)")

    stage("model")
    model = build_model(args.model, len(class_names), args.backbone)
    args.epochs = args.epochs or config.epochs
    args.batch_size = args.batch_size or config.batch_size
    args.imgsz = args.imgsz or config.imgsz
    warning(*imgsz_warning(args.imgsz, model.stride))
    args.imgsz = round_imgsz(args.imgsz, model.stride)
    min_imgsz, max_imgsz = imgsz_bounds(args.imgsz, model.stride)
    if args.batch_size == "auto":
        per_process = dist.on_main(largest_batch, model, max_imgsz, device, bf16)
        args.batch_size = per_process * dist.world_size

    stage("loaders")
    mosaic_until = args.epochs - hyp.close_mosaic
    train_set = TrainSet(train_data, hyp, args.seed, mosaic_until, args.cache)
    val_set = ValSet(val_data, max_imgsz, model.stride, args.cache)
    preload_images([train_set, val_set], args.cache, dist)
    if "batch_size" in overrides and args.batch_size > len(train_set):
        warning(f"--batch-size {args.batch_size}: larger than the training set; using {len(train_set)}")
    sampler = EpochBatchSampler(
        len(train_set), args.batch_size, (min_imgsz, max_imgsz), args.seed, dist.rank, dist.world_size
    )
    workers = args.workers
    if workers is None:
        workers = default_workers(device, dist.local_world_size)
    loader_options = {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "worker_init_fn": worker_init,
        "collate_fn": collate,
        "pin_memory": device.type == "cuda",
    }
    train_loader = DataLoader(train_set, batch_sampler=sampler, **loader_options)
    val_shard = Subset(val_set, range(dist.rank, len(val_set), dist.world_size))
    val_batch_size = math.ceil(args.batch_size / dist.world_size)
    val_loader = DataLoader(val_shard, val_batch_size, **loader_options)
    coco_gt = to_coco_gt(
        val_data.sizes, val_data.offsets, val_data.boxes, val_data.labels, val_data.crowd, class_names
    )

    stage("weights")
    if checkpoint is None:
        info(*load_initial_weights(model, args.weights, args.pretrained))
    if args.sync_bn:
        model = convert_sync_batchnorm(model, device)
    frozen_modules = freeze(model, args.freeze) if args.freeze else []
    model.to(device, memory_format=torch.channels_last)

    stage("schedule")
    optimizer = build_optimizer(model, hyp, dtype)
    scheduler, lr_plan, messages = build_checked_scheduler(
        hyp, start.hyp_file, optimizer, args.epochs, sampler.batch_sizes, args.batch_size
    )
    warning(*messages)
    ema = EMA(model, hyp.ema_decay)
    tensorboard = TensorBoardLogger(dist.is_main and args.tensorboard)

    # The state of the run. A part that is added here is saved and restored with the others.
    progress = Progress()
    parts = {
        "model": model,
        "ema": ema,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "progress": progress,
    }
    environment = numerics_environment(device, bf16, dist.world_size)

    # From here on a signal is answered after the batch under way, with a checkpoint.
    stop.defer()
    if checkpoint is not None:
        restore(parts, checkpoint, start.path)
        scheduler.extend(args.epochs)
        run_dir = RunDir(run_dir_of(start.path))
        info(f"{start.path}: resuming at epoch {progress.epoch}/{args.epochs}, "
             f"batch {progress.batch}/{len(sampler)}")
        old_epochs = checkpoint["args"]["epochs"]
        if args.epochs != old_epochs:
            info(f"--epochs {args.epochs}: the schedule is now that of {args.epochs} epochs, was {old_epochs}")
        if changes := environment_diff(checkpoint["environment"], environment):
            warning(f"{start.path}: environment changed ({changes}): "
                    "results will not be bitwise identical")
    else:
        stage("run_dir")
        reuse_dir = args.exist_ok or args.resume == "auto"
        run_dir = RunDir(dist.on_main(new_run_dir, Path(args.project), args.name, reuse_dir))
    header = {
        "args": vars(args),
        "hyp": hyp.model_dump(),
        "class_names": list(class_names),
        "model_config": model.config,
        "data_fingerprint": fingerprint,
        "environment": environment,
    }
    checkpointer = Checkpointer(run_dir, header, parts, dist, stop, args.save_every)
    torch.autograd.set_detect_anomaly(args.detect_anomaly)
    if args.detect_anomaly:
        detect_anomaly(model)
    ddp_model = dist.wrap_ddp(model, same_order)
    return Run(
        args, hyp, dist, stop, device, bf16, environment,
        train_data, val_data, train_set, sampler, train_loader, val_loader, coco_gt,
        model, ddp_model, frozen_modules, ema, optimizer, scheduler, lr_plan, progress, parts,
        run_dir, checkpointer, tensorboard,
    )  # positional, in the order of the fields


def train_one_epoch(run: Run, progress: Progress) -> None:
    """Train from batch `progress.batch` to the end of epoch `progress.epoch`."""
    hyp, sampler, epoch = run.hyp, run.sampler, progress.epoch
    dtype = torch.bfloat16 if run.bf16 else torch.float32
    sampler.epoch, sampler.start_batch = epoch, progress.batch
    run.scheduler.step(epoch)
    run.ddp_model.train()
    for module in run.frozen_modules:
        module.eval()  # BatchNorm statistics are frozen, too
    window_loss = 0.0
    bar = tqdm(
        run.train_loader,
        f"{epoch}/{run.args.epochs - 1}",
        len(sampler),
        initial=progress.batch,
        unit="batch",
        leave=False,
        disable=None if run.dist.is_main else True,  # None: only on a terminal
    )
    for batch, (images, targets) in enumerate(bar, progress.batch):
        stage("batch", epoch=epoch, batch=batch)
        seed_everything(run.args.seed, epoch, batch, run.dist.rank)
        run.scheduler.step_batch(sampler.batch_sizes[batch])
        check_lr(run.scheduler, run.lr_plan, epoch, batch)

        # An optimizer step takes the mean gradient of a window of hyp.accumulate batches.
        window_start = batch - batch % hyp.accumulate
        window_end = min(window_start + hyp.accumulate, len(sampler))
        is_update_step = batch + 1 == window_end
        run.ddp_model.require_backward_grad_sync = is_update_step  # read by DDP

        # Forward and backward.
        images = images.to(run.device, non_blocking=True)
        images = apply_color_matrix(images, [target["color"] for target in targets], dtype)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.bf16):
            losses = run.ddp_model(images, targets)
        if batch == epoch == 0 and (unused := hyp.loss_weights.keys() - losses.keys()):
            warning(f"{run.args.model}: its losses are {', '.join(losses)}; the loss weights {', '.join(sorted(unused))} have no effect")
        losses = {name: loss * hyp.loss_weights.get(name, 1.0) for name, loss in losses.items()}
        (sum(losses.values()) / (window_end - window_start)).backward()
        reduced = run.dist.all_reduce_mean(torch.stack([*losses.values()]).detach())
        progress.means.update(**dict(zip(losses, reduced, strict=True)))
        window_loss = window_loss + reduced.sum()
        if not bar.disable and batch % 10 == 0:
            postfix = {name: f"{mean:.3f}" for name, mean in progress.means.values().items()}
            postfix["lr"] = f"{run.scheduler.get_last_lr()[0]:.2e}"
            postfix["mem"] = f"{peak_memory_gb(run.device):.1f}G"
            bar.set_postfix(postfix, images=int(sampler.bounds[batch + 1]), refresh=False)
        if not is_update_step:
            continue

        # Optimizer step, unless its numbers are not finite.
        grad_norm = nn.utils.clip_grad_norm_(run.model.parameters(), hyp.grad_clip or math.inf)
        is_finite = math.isfinite(window_loss + grad_norm)  # the one wait for the GPU in a step
        progress.record_step(is_finite)
        if is_finite:
            run.optimizer.step()
            run.ema.update(run.model)
        else:
            run.ema.restore_buffers(run.model)
            names = run.train_data.image_names(sampler.source_images(window_start, batch))
            warning(f"epoch {epoch}, batch {batch}: loss {window_loss:.3g} or gradient norm "
                    f"{grad_norm:.3g} is not finite: skipped the optimizer step "
                    f"({progress.skipped_steps} so far); images: {names}")
        if progress.consecutive_skips == MAX_CONSECUTIVE_SKIPS:
            raise UserError(
                f"{run.run_dir.path}: {MAX_CONSECUTIVE_SKIPS} consecutive steps were not finite, up to "
                f"epoch {epoch}, batch {batch} (last.pt is from before; --detect-anomaly finds the "
                "first module)"
            )
        run.optimizer.zero_grad()
        window_loss = 0.0
        progress.batch = batch + 1
        run.checkpointer.after_step()


def validate(run: Run, progress: Progress) -> tuple[dict[str, float], bool]:
    """Evaluate the EMA on the validation split, every process its shard.

    Returns the metrics over all classes, and whether they are the best so far.
    """
    stage("validate", epoch=progress.epoch)
    run.dist.broadcast_buffers(run.ema.model)
    batches = run.stop.stop_on_signal(run.val_loader)
    detections = run_inference(run.ema.model, batches, run.device, run.bf16)
    progress.batch = len(run.sampler)  # a run that is stopped here resumes here
    run.checkpointer.exit_if_interrupted()
    detections = run.dist.gather_rows(detections)
    stage("evaluate")
    result = run.dist.on_main(evaluate, run.coco_gt, detections)
    confident = torch.from_numpy(detections[detections[:, 5] > MIN_SCORE]).float()
    return result.overall, progress.record_result(result, confident)


@cli_command("train.py")
def main(argv: list[str] | None = None) -> None:
    """Train, from the arguments to the report."""
    kill_workers_at_exit()
    with StopSignals() as stop:
        args, overrides = parse_args(argv)
        dist = DistributedContext()
        set_main(dist.is_main)
        stage("start")
        start = start_or_resume(args, overrides, ROOT / "hyp", dist)
        if start.is_finished:
            info(f"{start.path}: this run finished after {start.args.epochs} epochs")
            return dist.shutdown()
        run = build(start, overrides, dist, stop)
        args, progress, path = run.args, run.progress, run.run_dir.path
        class_names = run.train_data.class_names
        draws_plots = dist.is_main and not args.noplots
        info(
            f"{args.model}, {len(class_names)} classes, {len(run.train_set)} + "
            f"{len(run.val_data)} images at {args.imgsz} px, on {run.device}"
            f"{' in bf16' if run.bf16 else ''}, world size {dist.world_size}, into {path}"
        )
        if dist.is_main:
            run.run_dir.write_yaml(hyp=run.hyp.model_dump(), args=vars(args))
        if draws_plots:
            stage("start_plots")
            draw_plan(run.lr_plan, len(run.sampler), path / "lr.png")
            if start.checkpoint is None:
                loader = DataLoader(run.train_set, batch_sampler=run.sampler, collate_fn=collate)
                images, targets = next(iter(loader))
                images = apply_color_matrix(images, [target["color"] for target in targets])
                draw_batch(images, targets, class_names, path / "train_batch.jpg")
        run.tensorboard.open(path, progress.epoch)
        progress.start_timer()
        run.checkpointer.save()  # fail early on a full disk; from here a kill can be resumed

        while progress.epoch < args.epochs and not progress.early_stopped:
            epoch = progress.epoch
            is_last_epoch = epoch + 1 == args.epochs
            progress.start_timer()
            seed_everything(args.seed, epoch)
            train_one_epoch(run, progress)
            throughput = len(run.train_set) / progress.seconds()
            metrics, improved = {}, False
            if is_last_epoch or not args.noval:
                metrics, improved = validate(run, progress)
                epochs_without_improvement = epoch - progress.best_epoch
                if not is_last_epoch and 0 < args.patience <= epochs_without_improvement:
                    progress.early_stopped = True
            row = progress.record_epoch(metrics, run.scheduler.get_last_lr())
            run.tensorboard.log_epoch(row)
            info(f"{summary_line(row)}  {throughput:.0f} images/s")
            progress.next_epoch()
            run.checkpointer.save(improved)
            if progress.early_stopped:
                info(f"early stopping: mAP50-95 has not improved for {args.patience} epochs")
            elif not is_last_epoch:
                run.checkpointer.exit_if_interrupted()

        if progress.skipped_steps:
            warning(
                f"skipped {progress.skipped_steps} optimizer steps with a non-finite loss or gradient"
            )
        if draws_plots:
            stage("results_plots")
            draw_results(progress.history, path / "results.png")
            images, targets = next(iter(run.val_loader))
            with torch.no_grad(), torch.autocast(run.device.type, torch.bfloat16, run.bf16):
                predictions = run.ema.model(images.to(run.device))
            draw_predictions(images, targets, predictions, class_names, path / "val_batch.jpg")
            stage("report")
            summary = RunSummary(...)
            write_report(path, summary)
        run.tensorboard.close(path, len(progress.history) - 1)
        progress.finished = True  # only a run with its plots is finished
        if not dist.on_main(run.checkpointer.save):
            raise UserError(
                f"{path}: training finished, but the final checkpoint could not be written "
                "(free disk space and use --resume)"
            )
        best = path / "weights" / "best.pt"
        info(f"best epoch {progress.best_epoch}, saved to {best}", format_table(progress.best_result))
        dist.shutdown()


if __name__ == "__main__":
    sys.exit(main())
