"""How far a loop is: a bar on a terminal; elsewhere, as in the log of a batch system, lines."""

import time
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from tqdm import tqdm

from utils.log import is_main, progress, seconds_since_output

T = TypeVar("T")
INTERVAL = 60.0  # seconds without any output after which a line is printed
BAR_ITEMS = 10  # items after which the text of a bar is due again


class Track(Generic[T]):
    """Iterates over `items` and shows on stderr how far it is.

    On a terminal that is a bar. Otherwise it is a line, once nothing was printed for a minute: a
    log is not filled with bars, and still shows that the process is alive. `name` is that of the
    loop, `unit` that of an item; the first item is number `initial` of `total`.
    """

    def __init__(
        self, items: Iterable[T], name: str, total: int, unit: str, initial: int = 0
    ) -> None:
        self._items, self._name, self._total, self._unit = items, name, total, unit
        self._initial = self._count = initial
        self._start_time = time.monotonic()
        disable = None if is_main() else True  # None: only on a terminal
        self._bar = tqdm(
            items, name, total, initial=initial, unit=unit, leave=False, disable=disable
        )

    def __iter__(self) -> Iterator[T]:
        self._start_time = time.monotonic()
        for item in self._items if self._bar.disable else self._bar:
            yield item
            self._count += 1
            if self._bar.disable and self.is_due:
                self.show()

    @property
    def is_due(self) -> bool:
        """Whether it is time to `show` values."""
        if self._bar.disable:
            return is_main() and seconds_since_output() >= INTERVAL
        return self._count % BAR_ITEMS == 0

    def show(self, **values: str) -> None:
        """Show how far the loop is, with the `values`."""
        if not self._bar.disable:
            self._bar.set_postfix(values, refresh=False)
            return
        rate = (self._count - self._initial) / max(1e-9, time.monotonic() - self._start_time)
        parts = [f"{self._name}: {self._unit} {self._count}/{self._total}"]
        if rate > 0:
            left = tqdm.format_interval((self._total - self._count) / rate)
            parts.append(f"{rate:.3g} per second, {left} left")
        progress(", ".join([*parts, *(f"{name} {value}" for name, value in values.items())]))
