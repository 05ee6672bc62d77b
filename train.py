"""Train an object detector.

    python train.py --hyp hyp.yaml                                  # the built-in dataset
    python train.py --data mine/data.yaml --epochs 100 --imgsz 640  # your own
    python train.py --resume                                        # continue the latest run
    torchrun --standalone --nproc_per_node 4 train.py --data ...    # several GPUs

Read it top to bottom: build() turns arguments into objects (run.py lists them), train_one_epoch()
has the training step, validate() evaluates the EMA, main() is the story. To change the loop, change
this file.
"""

import math
import sys
from pathlib import Path

from utils.cpus import limit_spinning

if __name__ == "__main__":
    limit_spinning()  # before torch is loaded

import torch
from torch import nn

from data.augment import apply_color_matrix, mosaic_warning
from data.config import channels_message, read_data_config
from data.formats import images_in_both_splits, invalid_count, read_train_val
from data.loaders import build_loaders
from data.locate import find_data_yaml
from data.prefetch import prefetch
from data.shapes import make_builtin
from models import build_model
from models.batch_norm import check_batch_of_one
from models.cuda_graph import capture_training
from models.freezing import freeze
from models.weights import load_initial_weights
from options import defaults, hyp_message, parse_args
from run import Run
from utils.amp import LossScaler, amp_dtype, amp_name, autocast
from utils.anomaly import detect_anomaly
from utils.auto_batch import auto_batch_size
from utils.checkpoint import restore
from utils.checkpointer import Checkpointer
from utils.cli import abs_path, cli_command
from utils.cuda_graphs import check_cuda_graphs
from utils.device import select_device, set_deterministic, set_threads, watch_load
from utils.distributed import DistributedContext, convert_sync_batchnorm
from utils.ema import EMA
from utils.errors import UserError
from utils.ground_truth import limit_message
from utils.inference import run_inference
from utils.interrupt import StopSignals, kill_workers_at_exit
from utils.keep_going import KeepGoing
from utils.letterbox import fit_imgsz, imgsz_bounds
from utils.log import info, plural, set_main, stage, warning
from utils.memory import disable_malloc_trim, peak_memory_gb
from utils.metrics import combine, evaluate_classes, format_table
from utils.nonfinite import report_skip
from utils.optimizers import build_optimizer
from utils.plan import build_checked_scheduler, check_lr
from utils.progress import Progress, summary_line
from utils.report import REPORT_CONF, command_line
from utils.resume import (
    Start,
    check_data_unchanged,
    numerics_environment,
    resume_warnings,
    start_or_resume,
)
from utils.run_dir import RunDir, new_run_dir, run_dir_of
from utils.run_plots import draw_final_plots, draw_lr_plan, draw_train_batch
from utils.seeds import seed_everything
from utils.tensorboard import TensorBoardLogger
from utils.track import Track
from utils.val_loss import LossTotals, mean_losses

ROOT = Path(__file__).resolve().parent


def build(
    start: Start, overrides: dict[str, object], dist: DistributedContext, stop: StopSignals
) -> Run:
    """Turn arguments into objects, and restore their state if the run is resumed.

    Raises UserError for anything in the arguments, hyp file, data or checkpoint that is wrong.
    """
    run = Run()
    run.dist, run.stop = dist, stop
    args = run.args = start.args
    hyp = run.hyp = start.hyp

    stage("device")
    device = run.device = select_device(args.device, dist.local_rank)
    threads = dist.on_main(set_threads, args.threads)
    args.threads = set_threads(threads)  # in all processes and for good: the last bits depend on it
    run.dtype = amp_dtype(args.amp, device)
    same_order = args.deterministic or device.type == "cpu"
    set_deterministic(same_order)
    disable_malloc_trim()
    seed_everything(args.seed)

    stage("data")
    args.data = abs_path(str(find_data_yaml(args.data, ROOT / "data")))  # to resume from elsewhere
    config = read_data_config(Path(args.data))
    if dist.on_main(make_builtin, config):
        info(f"drew the built-in dataset into {config.path}")
    train_data, val_data = dist.on_node_main(read_train_val, config, args.data, args.single_cls)
    run.train_data, run.val_data = train_data, val_data
    fingerprint = {"train": train_data.fingerprint(), "val": val_data.fingerprint()}
    if start.checkpoint is not None:
        check_data_unchanged(start.checkpoint["data_fingerprint"], fingerprint, args.data)
    warning(*train_data.messages("train"), *val_data.messages("val"))
    warning(*images_in_both_splits(train_data, val_data))
    num_errors = len(train_data.errors) + len(val_data.errors)
    if args.strict_data and num_errors:
        raise UserError(f"{args.data}: {invalid_count(num_errors)} (--strict-data)")
    run.ground_truth = val_data.ground_truth()
    limit = run.ground_truth.detection_limit
    info(*limit_message(limit, "val"))

    stage("model")
    saved_config = start.checkpoint["model_config"] if start.checkpoint is not None else {}
    model = run.model = build_model(
        args.model,
        len(train_data.class_names),
        args.backbone,
        train_data.channels,
        saved_config.get("architecture"),
    )
    model.class_names = train_data.class_names
    model.allow_detections(limit)
    if hyp.class_weights is not None:
        class_weights = hyp.weights_of_classes(train_data.class_names, start.hyp_file)
        model.set_class_weights(class_weights)
    args.epochs = args.epochs or config.epochs
    args.imgsz = fit_imgsz(args.imgsz or config.imgsz, model.stride, model.min_size)
    _, max_imgsz = bounds = imgsz_bounds(args.imgsz, model.stride)
    uses_graphs = check_cuda_graphs(args, hyp, device, bounds, dist.world_size, overrides)
    args.batch_size = args.batch_size or config.batch_size
    if args.batch_size == "auto":
        args.batch_size = auto_batch_size(
            model, max_imgsz, device, run.dtype, len(train_data), config.batch_size, dist
        )
    if "batch_size" in overrides and args.batch_size > len(train_data):
        size = len(train_data)
        warning(f"--batch-size {args.batch_size}: larger than the training set; using {size}")

    stage("loaders")
    run.loaders = build_loaders(
        train_data, val_data, args, hyp, model.stride, model.min_size, device, dist
    )
    sampler = run.loaders.sampler

    stage("weights")
    if start.checkpoint is None:
        info(*load_initial_weights(model, args.weights, args.pretrained))
    if args.sync_bn:
        model = run.model = convert_sync_batchnorm(model, device)
    run.frozen_modules = freeze(model, args.freeze) if args.freeze else []
    if sampler.batch_size < 2 * dist.world_size and not args.sync_bn:
        check_batch_of_one(model, sampler.min_imgsz, run.frozen_modules, args.batch_size)
    model.to(device, memory_format=torch.channels_last)

    stage("schedule")
    run.optimizer = build_optimizer(model, hyp)
    run.scaler = LossScaler(device, run.dtype)
    batch_sizes = [sampler.batch_size] * len(sampler)
    run.scheduler, run.lr_plan, messages = build_checked_scheduler(
        hyp, start.hyp_file, run.optimizer, args.epochs, batch_sizes, sampler.batch_size
    )
    warning(*messages)
    run.ema = EMA(model, hyp.ema_decay)
    run.tensorboard = TensorBoardLogger(dist.is_main and args.tensorboard)

    # The state of the run. A part that is added here is saved and restored with the others.
    run.progress = Progress()
    run.parts = {
        "model": model,
        "ema": run.ema,
        "optimizer": run.optimizer,
        "scaler": run.scaler,
        "scheduler": run.scheduler,
        "progress": run.progress,
    }

    stop.defer()  # from here on a signal is answered after the batch under way, with a checkpoint
    stage("run_dir")
    run.environment = numerics_environment(device, run.dtype, dist.world_size, model.libraries)
    if start.checkpoint is not None:
        restore(run.parts, start.checkpoint, start.path)
        run.scheduler.extend(args.epochs)
        run.progress.finished = False  # a finished run is resumed with more epochs only
        run.run_dir = RunDir(run_dir_of(start.path))
        warning(*resume_warnings(start, run.environment))
        position = f"epoch {run.progress.epoch}/{args.epochs}, batch {run.progress.batch}"
        info(f"{start.path}: resuming at {position}/{len(sampler)}")
    else:
        reuse = args.exist_ok or args.resume == "auto"
        run.run_dir = RunDir(dist.on_main(new_run_dir, Path(args.project), args.name, reuse))
    header = {
        "args": vars(args),
        "hyp": hyp.model_dump(),
        "class_names": list(train_data.class_names),
        "model_config": model.config,
        "data_fingerprint": fingerprint,
        "environment": run.environment,
        "detection_limit": limit,
        "stride": model.stride,
    }
    run.checkpointer = Checkpointer(
        run.run_dir, header, run.parts, dist, stop, args.save_every, args.save_period
    )
    torch.autograd.set_detect_anomaly(args.detect_anomaly)
    if args.detect_anomaly:
        detect_anomaly(model)
    if args.compile:
        model.compile_network(args.compile)
    if uses_graphs:
        shape = (sampler.batch_size, train_data.channels, max_imgsz, max_imgsz)
        capture_training(model, run.frozen_modules, shape, device, run.dtype)
    run.ddp_model = dist.wrap_ddp(model, same_order)
    return run


def train_one_epoch(run: Run, progress: Progress) -> None:
    """Train from batch `progress.batch` to the end of epoch `progress.epoch`."""
    hyp, sampler, epoch = run.hyp, run.loaders.sampler, progress.epoch
    sampler.epoch, sampler.start_batch = epoch, progress.batch
    run.scheduler.step(epoch)
    run.ddp_model.train()
    for module in run.frozen_modules:
        module.eval()  # BatchNorm statistics are frozen, too
    window_loss = 0.0
    batches = prefetch(run.loaders.train, run.device)
    name = f"epoch {epoch}/{run.args.epochs - 1}"
    track = Track(batches, name, len(sampler), "batch", progress.batch)
    for batch, (images, targets) in enumerate(track, progress.batch):
        stage("batch", epoch=epoch, batch=batch)
        seed_everything(run.args.seed, epoch, batch, run.dist.rank)
        run.scheduler.step_batch(sampler.batch_size)
        check_lr(run.scheduler, run.lr_plan, epoch, batch)

        # An optimizer step takes the mean gradient of a window of hyp.accumulate batches.
        window_start = batch - batch % hyp.accumulate
        window_end = min(window_start + hyp.accumulate, len(sampler))
        is_update_step = batch + 1 == window_end
        run.ddp_model.require_backward_grad_sync = is_update_step  # read by DDP

        # Forward and backward.
        images = apply_color_matrix(images, [target["color"] for target in targets], run.dtype)
        with autocast(run.device, run.dtype):
            losses = run.ddp_model(images, targets)
        if batch == epoch == 0:
            warning(*hyp.unused_loss_weights(losses, run.args.model))
        losses = {name: loss * hyp.loss_weights.get(name, 1.0) for name, loss in losses.items()}
        run.scaler.scale(sum(losses.values()) / (window_end - window_start)).backward()
        reduced = run.dist.all_reduce_mean(torch.stack([*losses.values()]).detach())
        progress.means.update(**dict(zip(losses, reduced, strict=True)))
        window_loss = window_loss + reduced.sum()
        if track.is_due:
            values = {name: f"{mean:.3f}" for name, mean in progress.means.values().items()}
            values["lr"] = f"{run.scheduler.get_last_lr()[0]:.2e}"
            values["mem"] = f"{peak_memory_gb(run.device):.1f}G"
            track.show(**values, images=f"{(batch + 1) * sampler.batch_size}")
        if not is_update_step:
            continue

        # Optimizer step, unless its numbers are not finite.
        run.scaler.unscale_(run.optimizer)
        grad_norm = nn.utils.clip_grad_norm_(run.model.parameters(), hyp.grad_clip or math.inf)
        is_finite = math.isfinite(window_loss + grad_norm)  # the one wait for the GPU in a step
        if is_finite:
            run.optimizer.step()
            run.ema.update(run.model)
            progress.consecutive_skips = 0
        elif not run.scaler.overflows(window_loss):
            progress.skip_step()
            run.ema.restore_buffers(run.model)
            names = run.train_data.image_names(sampler.source_images(window_start, batch))
            report_skip(progress, batch, window_loss, grad_norm, names, run.run_dir.path)
        run.scaler.update()
        run.optimizer.zero_grad()
        window_loss = 0.0
        progress.batch = batch + 1
        run.checkpointer.after_step()


def validate(run: Run, progress: Progress) -> tuple[dict[str, float], dict[str, float], bool]:
    """Evaluate the EMA on the validation split, every process its shard.

    Returns the losses, weighted as in training, the metrics over all classes, and whether they are
    the best so far.
    """
    stage("validate", epoch=progress.epoch)
    run.dist.broadcast_buffers(run.ema.model)
    batches = Track(run.loaders.val, "validation", len(run.loaders.val), "batch")
    batches = run.stop.stop_on_signal(batches)
    limit = run.ground_truth.detection_limit
    totals = LossTotals()
    detections = run_inference(run.ema.model, batches, run.device, run.dtype, limit, totals)
    progress.batch = len(run.loaders.sampler)  # a run that is stopped here resumes here
    run.checkpointer.exit_if_interrupted()
    losses = mean_losses(run.dist.all_gather(totals.read()))
    losses = {name: loss * run.hyp.loss_weights.get(name, 1.0) for name, loss in losses.items()}
    detections = run.dist.gather_rows(detections)
    stage("evaluate")
    shard = range(run.dist.rank, len(run.ground_truth.class_names), run.dist.world_size)
    parts = run.dist.on_each(evaluate_classes, run.ground_truth, detections, shard)
    result, _ = combine(run.dist.all_gather(parts))
    confident = torch.from_numpy(detections[detections[:, 5] > REPORT_CONF]).float()
    return losses, result.overall, progress.record_result(result, confident)


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
            info(f"{start.path}: this run finished after {plural(start.args.epochs, 'epoch')}")
            return dist.shutdown()
        run = build(start, overrides, dist, stop)
        args, progress, path = run.args, run.progress, run.run_dir.path
        class_names = run.train_data.class_names
        draws_plots = dist.is_main and not args.noplots
        info(
            f"{args.model}, {plural(len(class_names), 'class', 'classes')}, "
            f"{len(run.loaders.train_set)} + {len(run.val_data)} images at {args.imgsz} px, on "
            f"{run.device}, amp {amp_name(run.dtype)}, world size {dist.world_size}, into {path}"
        )
        if start.checkpoint is None:
            info(*hyp_message(args, overrides))
        warning(*mosaic_warning(run.hyp, args.epochs))
        info(*run.loaders.sampler.small_message(), *channels_message(run.train_data.channels))
        if dist.is_main:
            run.run_dir.write_yaml(hyp=run.hyp.model_dump(), args=vars(args))
        if draws_plots:
            stage("start_plots")
            draw_lr_plan(path, run.lr_plan, len(run.loaders.sampler))
            if start.checkpoint is None:
                draw_train_batch(path, run.loaders.next_train_batch(run.dtype), class_names)
        run.tensorboard.open(path, progress.epoch)
        progress.start_timer()
        run.checkpointer.save()  # a full disk is reported early; from here a kill can be resumed
        load = watch_load(run.device, dist.world_size * (1 + run.loaders.train.num_workers))

        while progress.epoch < args.epochs and not progress.early_stopped:
            epoch = progress.epoch
            is_last_epoch = epoch + 1 == args.epochs
            progress.start_timer()
            seed_everything(args.seed, epoch)
            train_one_epoch(run, progress)
            sampler = run.loaders.sampler
            throughput = len(sampler) * sampler.batch_size / progress.seconds()
            val_losses, metrics, improved = {}, {}, False
            if is_last_epoch or not args.noval:
                val_losses, metrics, improved = validate(run, progress)
                epochs_without_improvement = epoch - progress.best_epoch
                if not is_last_epoch and 0 < args.patience <= epochs_without_improvement:
                    progress.early_stopped = True
            row = progress.record_epoch(val_losses, metrics, run.scheduler.get_last_lr())
            run.tensorboard.log_epoch(row)
            info(f"{summary_line(row)}  {throughput:.0f} images/s")
            warning(*load.message())
            progress.next_epoch()
            run.checkpointer.save(improved, epoch_ended=True)
            if progress.early_stopped:
                info(f"early stopping: no better mAP50-95 for {plural(args.patience, 'epoch')}")
            elif not is_last_epoch:
                run.checkpointer.exit_if_interrupted()

        if progress.skipped_steps:
            steps = plural(progress.skipped_steps, "optimizer step")
            warning(f"skipped {steps} with a non-finite loss or gradient")
        keep_going = KeepGoing()  # the run is saved; no error in a plot may end it
        reports: list[str] = []
        if draws_plots:
            summary = run.summary(command_line("train.py", vars(args), defaults()))
            reports = draw_final_plots(
                path, summary, run.loaders.val, run.ema.model, run.device, run.dtype, keep_going
            )
        with keep_going.without("TensorBoard's images"):
            run.tensorboard.close(path, len(progress.history) - 1)
        progress.finished = keep_going.succeeded  # only a run with its plots is finished
        if not dist.on_main(run.checkpointer.save):
            raise UserError(
                f"{path}: training finished, but the final checkpoint could not be written "
                "(free disk space and use --resume)"
            )
        if not keep_going.succeeded:
            warning(f"{path}: training finished; --resume makes only what is missing")
        best = path / "weights" / "best.pt"
        saved = f"best epoch {progress.best_epoch}, saved to {best}"
        info(saved, format_table(progress.best_result), *reports)
        dist.shutdown()


if __name__ == "__main__":
    sys.exit(main())
