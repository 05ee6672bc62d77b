"""File names in one array, without an object for each."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from utils.shared_memory import SharedArray


class FileNames(Sequence[str]):
    """A sequence of strings, whose UTF-8 bytes are `text`, each up to its entry of `ends` (n,).

    A numpy array of strings has four bytes per character of the longest one. DataLoader workers
    share an array's memory, but copy objects: those that are forked change reference counts.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self._text, self._ends = SharedArray(text), SharedArray(ends)

    @property
    def text(self) -> np.ndarray:
        """The bytes of all names, uint8."""
        return self._text.array

    @property
    def ends(self) -> np.ndarray:
        """Where each name ends in `text` (n,)."""
        return self._ends.array

    @classmethod
    def of(cls, names: Iterable[str]) -> "FileNames":
        """Return the sequence of `names`."""
        encoded = [name.encode("utf-8", "surrogatepass") for name in names]
        ends = np.cumsum([*map(len, encoded)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        end = int(self.ends[index])
        index %= len(self)
        start = int(self.ends[index - 1]) if index else 0
        return self.text[start:end].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        text, start = self.text.tobytes(), 0
        for end in self.ends.tolist():
            yield text[start:end].decode("utf-8", "surrogatepass")
            start = end

    def tolist(self) -> list[str]:
        """Return the names as a list."""
        return list(self)
