"""Run train.py and announce its phases, so that a test can kill it at a chosen moment.

The file `$ANNOUNCE.RANK` holds the process's id and its phase; to `$ANNOUNCE.RANK.samples` goes
the key of each sample that the process makes itself, without DataLoader workers. Nothing else is
changed.
"""

import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import data.dataset
import train
import utils.run_dir
from utils.log import logger

WARMUP_EPOCHS = 3

prefix = f"{os.environ['ANNOUNCE']}.{os.environ.get('RANK', '0')}"
phase_file = os.open(prefix, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
samples_file = os.open(f"{prefix}.samples", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


class PhaseHandler(logging.Handler):
    """Announces the phases that stages begin: warm-up or training, validation, saving."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.training_phase = "starting"  # what continues after a validation or a save
        self.announce(self.training_phase)

    def announce(self, phase: str) -> None:
        os.pwrite(phase_file, f"{os.getpid()} {phase}".ljust(40).encode(), 0)

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == "batch":
            is_warmup = record.details["epoch"] < WARMUP_EPOCHS
            self.training_phase = "warm-up" if is_warmup else "training"
            self.announce(self.training_phase)
        elif record.msg == "validate":
            self.announce("validation")
        elif record.msg == "evaluate":
            self.announce(self.training_phase)
        elif record.msg == "save":
            self.announce("saving")


def announce_end_of_save(handler: PhaseHandler) -> None:
    original = utils.run_dir.RunDir.save

    def save(*args: object, **kwargs: object) -> object:
        try:
            return original(*args, **kwargs)
        finally:
            handler.announce(handler.training_phase)

    utils.run_dir.RunDir.save = save


def record_samples() -> None:
    get_train_samples = data.dataset.TrainSet.__getitems__
    get_val_sample = data.dataset.ValSet.__getitem__

    def write(*key: int) -> None:
        os.write(samples_file, f"{' '.join(map(str, key))}\n".encode())

    def train_samples(self, keys):
        for key in keys:
            write(key.epoch, key.position, *key.indices)
        return get_train_samples(self, keys)

    def val_sample(self, index):
        write(index)
        return get_val_sample(self, index)

    data.dataset.TrainSet.__getitems__ = train_samples
    data.dataset.ValSet.__getitem__ = val_sample


if __name__ == "__main__":
    handler = PhaseHandler()
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    announce_end_of_save(handler)
    record_samples()
    sys.exit(train.main())
