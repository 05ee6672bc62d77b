"""The rows of a head, one for each class, taken from other weights by the names of the classes."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def rows_by_name(names: Sequence[str], donor_names: Mapping[int, str]) -> dict[int, int]:
    """Return for each class of `names` the index of the donor's class that has the same name.

    Upper and lower case, `_` and `-` do not matter, unless the donor has the very same name: A and
    a may be two classes. The keys are indices in `names`; a class that the donor does not have is
    not among them.
    """
    same = {str(name): int(k) for k, name in donor_names.items()}
    similar = {_plain_name(name): k for name, k in same.items()}
    rows = {k: same.get(name, similar.get(_plain_name(name))) for k, name in enumerate(names)}
    return {k: row for k, row in rows.items() if row is not None}


@torch.no_grad()
def copy_rows(
    tensor: Tensor, donor: Tensor, rows: Mapping[int, int], num_classes: int, num_donor_classes: int
) -> None:
    """Overwrite rows of `tensor` with those of `donor`: `rows` has an index there for one here.

    And what follows the rows of the classes, such as one of "no object".
    """
    others = range(len(donor) - num_donor_classes)
    rows = {**rows, **{num_classes + k: num_donor_classes + k for k in others}}
    tensor[[*rows]] = donor[[*rows.values()]].to(tensor)


def matched_classes_message(names: Sequence[str], rows: Mapping[int, int]) -> str:
    """Return which classes of `names` keep the rows of other weights, as a part of a message."""
    text = ", ".join(names[k] for k in rows)
    return f"those of {len(rows)} of {len(names)} classes are kept, by name: {text}"


def _plain_name(name: str) -> str:
    return name.lower().replace("_", " ").replace("-", " ").strip()
