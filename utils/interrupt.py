"""The signals that ask a run to stop: from a batch system (SIGTERM, SIGUSR1), the keyboard, a terminal that is gone, torchrun."""

import atexit
import multiprocessing
import multiprocessing.queues
import os
import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
    if hasattr(signal, name)
)  # Windows lacks the last two

T = TypeVar("T")


class Interrupted(
    BaseException
):  # as KeyboardInterrupt: nobody's `except Exception` may swallow it
    """The run ends because of the signal `number`. `where` says where it stands; "" if that is for another process to say."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(where and f"stopped by {signal.Signals(number).name} {where}")
        self.number = number


class StopSignals:
    """While entered, one of `SIGNALS` raises Interrupted; once `noted` is set, its number is kept in `received` instead.

    So a run that has nothing to lose ends at once, and one that has can end where it likes. A signal that the process ignores
    when this is entered stays ignored, but for SIGINT.
    """

    def __init__(self) -> None:
        self.received = 0
        self.deferred = False

    def __enter__(self) -> "StopSignals":
        # What nohup wants of SIGHUP is kept. SIGINT is ignored by whatever a script starts in the background, and is answered.
        ignored = {number for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN} - {
            signal.SIGINT
        }
        self._before = {
            number: signal.signal(number, self._arrived)
            for number in SIGNALS
            if number not in ignored
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, _: FrameType | None) -> None:
        if not self.deferred:
            raise Interrupted(number, "before training went on; there is nothing new to save")
        self.received = self.received or number

    def stop_on_signal(self, batches: Iterable[T]) -> Iterator[T]:
        """The `batches`, up to the one during which a signal arrives."""
        for batch in batches:
            yield batch
            if self.received:
                return


def worker_init(_: int = 0) -> None:
    """In a process that loads data: leave the signals to the one that trains, which still wants the batches under way.

    Ctrl-C and batch systems signal every process of a run. A loader ends some seconds after its trainer; one whose trainer was
    killed before this call ends here, for torch, which looks only later who the trainer is, would keep it for ever. One that
    cannot hand over a batch, for want of memory, ends too: its queue would drop the batch, and the trainer wait for it for ever.
    """
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(
        lambda error, batch: os._exit(1)
    )
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    trainer = multiprocessing.parent_process()
    if trainer and multiprocessing.get_start_method() == "fork" and os.getppid() != trainer.pid:
        os._exit(1)


@atexit.register
def _end_loaders() -> None:
    """When a trainer ends by an error, whose traceback keeps its loaders: they ignore the SIGTERM that multiprocessing sends them
    before it waits for them, and have nothing to lose."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise another error for each
    for loader in multiprocessing.active_children():
        loader.kill()
