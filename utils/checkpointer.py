"""When a run is saved: at its start, after epochs, every few minutes, and when a signal arrives."""

import time
from collections.abc import Mapping
from typing import Any

from utils import log
from utils.checkpoint import Part, part_states
from utils.distributed import DistributedContext
from utils.interrupt import Interrupted, StopSignals
from utils.progress import Progress
from utils.run_dir import RunDir


class Checkpointer:
    """Saves the state of `parts`, with `header`, into `run_dir`; only the main process writes.

    Args:
        run_dir: the directory of the run.
        header: the entries of a checkpoint that are not the state of a part.
        parts: the parts by name, among them `progress`, a `Progress`.
        dist: the processes of the run.
        stop: the signals that ask the run to stop.
        every: minutes between checkpoints within an epoch, 0 for none.
        period: epochs between checkpoints that are kept, 0 for none.
    """

    def __init__(
        self,
        run_dir: RunDir,
        header: Mapping[str, Any],
        parts: Mapping[str, Part],
        dist: DistributedContext,
        stop: StopSignals,
        every: float,
        period: int = 0,
    ) -> None:
        self.run_dir, self.header, self.parts = run_dir, header, parts
        self.dist, self.stop, self.every = dist, stop, every
        self.period = period

    def save(self, improved: bool = False, epoch_ended: bool = False) -> bool:
        """Save the run, and best.pt if it has `improved`; warn and return False if that fails.

        If an epoch has just ended, also epochN.pt after every `period` epochs.
        """
        if not self.dist.is_main:
            return True
        log.stage("save")
        number = self._progress.epoch
        keep = number if epoch_ended and self.period > 0 and number % self.period == 0 else None
        error = self.run_dir.save({**self.header, **part_states(self.parts)}, improved, keep)
        if error:
            log.warning(f"train.py: {error}; the last checkpoint stays as it is")
        return not error

    def after_step(self) -> None:
        """Save if the last checkpoint is old enough; exit if a signal has arrived.

        Several processes agree on a signal one step after it has arrived.
        """
        if self.dist.poll_max(self.stop.pending):
            self.exit_if_interrupted()
        age = time.monotonic() - self.run_dir.last_save_time
        # After a skipped step the cause may be in the weights: the last good checkpoint stays.
        if self.every and age > self.every * 60 and not self._progress.consecutive_skips:
            self.save()

    def exit_if_interrupted(self) -> None:
        """If any process has received a signal: save, and raise Interrupted in all of them."""
        number = self.dist.all_reduce_max(self.stop.pending)
        if not number:
            return
        saved = self.save()
        self.dist.shutdown()  # not before the main process has saved
        where = "from there" if saved else "from the last checkpoint"
        message = (
            f"at epoch {self._progress.epoch}, batch {self._progress.batch}; "
            f"--resume continues {where}"
        )
        raise Interrupted(number, message if self.dist.is_main else "")

    @property
    def _progress(self) -> Progress:
        return self.parts["progress"]
