"""File names in one array, without an object for each."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np


class FileNames(Sequence[str]):
    """A sequence of strings, whose UTF-8 bytes are `text`, each up to its entry of `ends` (n,).

    A numpy array of strings has four bytes per character of the longest one. Forked DataLoader
    workers share an array's memory, but copy objects, whose reference counts they change.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self.text, self.ends = text, ends

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
