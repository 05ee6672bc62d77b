"""The objects of a run: `build` in train.py makes them, and its loop uses them."""

from argparse import Namespace
from array import array
from functools import partial

import torch
from torch import nn

from data.formats import Annotations
from data.images import read_image
from data.loaders import Loaders
from models.detector import Detector
from utils.amp import LossScaler
from utils.checkpoint import Part
from utils.checkpointer import Checkpointer
from utils.distributed import DistributedContext
from utils.ema import EMA
from utils.ground_truth import GroundTruth
from utils.hyp import Hyp
from utils.interrupt import StopSignals
from utils.progress import Progress
from utils.report import RunSummary
from utils.run_dir import RunDir
from utils.schedulers import BatchWarmup
from utils.tensorboard import TensorBoardLogger


class Run:
    """Where `build` puts them; a fork adds its own here."""

    args: Namespace
    hyp: Hyp
    dist: DistributedContext
    stop: StopSignals
    device: torch.device
    dtype: torch.dtype  # what the network computes in
    environment: dict[str, object]  # what the last bits of the results depend on
    train_data: Annotations
    val_data: Annotations
    ground_truth: GroundTruth  # of validation
    loaders: Loaders
    model: Detector
    ddp_model: nn.Module  # `model` itself in a single process
    frozen_modules: list[nn.Module]
    optimizer: torch.optim.Optimizer
    scaler: LossScaler
    scheduler: BatchWarmup
    lr_plan: list[array]  # of each parameter group: the learning rate of every batch
    ema: EMA
    progress: Progress
    parts: dict[str, Part]  # all that is saved and restored, by name
    run_dir: RunDir
    checkpointer: Checkpointer
    tensorboard: TensorBoardLogger

    def summary(self, command: str) -> RunSummary:
        """Return what the report says about the run, with the command line that starts it again."""
        return RunSummary(
            command=command,
            environment=self.environment,
            hyp=self.hyp,
            rows=self.progress.history,
            planned=self.lr_plan,
            batches_per_epoch=len(self.loaders.sampler),
            result=self.progress.best_result,
            ground_truth=self.ground_truth,
            detections=self.progress.best_detections,
            files=self.val_data.files,
            read_image=partial(read_image, channels=self.val_data.channels),
        )
