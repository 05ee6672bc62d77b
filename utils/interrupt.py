"""Signals that ask a run to stop, and how DataLoader workers end.

They come from a batch system (SIGTERM, SIGUSR1), the keyboard, a closed terminal or torchrun.
"""

import atexit
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

from utils import compat

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
    if hasattr(signal, name)  # Windows lacks the last two
)

T = TypeVar("T")


class Interrupted(BaseException):
    """The run ends because of the signal `number`.

    `message` says where it stopped; it is "" in a process that leaves this to the main process. A
    BaseException, like KeyboardInterrupt, so that no `except Exception` catches it.
    """

    def __init__(self, number: int, detail: str) -> None:
        self.number = number
        self.message = f"stopped by {signal.Signals(number).name} {detail}" if detail else ""
        super().__init__(self.message)


class StopSignals:
    """Context in which one of `SIGNALS` raises Interrupted or, after `defer()`, sets `pending`.

    A run that has nothing to lose ends at once, and one that has ends where its state is complete.
    A signal that the process ignores on entering the context stays ignored, except SIGINT.
    """

    def __init__(self) -> None:
        self.pending = 0  # number of the first signal since `defer()`, or 0
        self.deferred = False

    def defer(self) -> None:
        """From now on store a signal in `pending` instead of raising Interrupted."""
        self.deferred = True

    def __enter__(self) -> "StopSignals":
        self._previous = {}
        for number in SIGNALS:
            # nohup ignores SIGHUP, which is respected. A shell script ignores SIGINT in all it
            # starts in the background; there a run should stop on it all the same.
            ignored = signal.getsignal(number) == signal.SIG_IGN
            if number == signal.SIGINT or not ignored:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if not self.deferred:
            raise Interrupted(number, "before the first batch; nothing new to save")
        self.pending = self.pending or number

    def stop_on_signal(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield from `batches`, ending after the one during which a signal arrives."""
        for batch in batches:
            yield batch
            if self.pending:
                return


def worker_init(worker_id: int = 0) -> None:
    """Prepare a DataLoader worker (`worker_init_fn`): ignore signals, exit if it is orphaned.

    Ctrl-C and batch systems signal every process of a run, but the main process still needs the
    batches in flight. A worker exits some seconds after its main process has ended. If that was
    killed before this call, the worker exits here: torch looks up who its parent is only later, and
    would keep the orphan forever. A worker that cannot send a batch, for lack of memory, exits too:
    otherwise the queue's feeder thread drops the batch and the main process hangs.
    """
    compat.exit_on_queue_feeder_error()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent and multiprocessing.get_start_method() == "fork" and os.getppid() != parent.pid:
        os._exit(1)


def start_forkserver() -> None:
    """Start the process that forks the workers, where there is one, with `SIGNALS` blocked.

    A signal to every process of a run would end it, and its workers would believe that the run has
    ended. It does end with the main process.
    """
    if multiprocessing.get_start_method() != "forkserver":
        return
    from multiprocessing import forkserver, resource_tracker  # not on Windows

    resource_tracker.ensure_running()  # when it starts, it unblocks signals
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def kill_workers_at_exit() -> None:
    """When this process exits, kill the multiprocessing children it still has.

    For commands only: in a notebook it would kill other children, too. After an error the traceback
    keeps the DataLoader alive. multiprocessing then sends the workers SIGTERM, which they ignore
    (`worker_init`), and waits for them. They have nothing to lose.
    """
    atexit.unregister(_kill_workers)  # when called twice
    atexit.register(_kill_workers)


def _kill_workers() -> None:
    if hasattr(signal, "SIGCHLD"):
        # torch's handler raises an error for each worker that was killed.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()
