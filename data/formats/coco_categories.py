"""The categories of a COCO json: their ids, and the classes that they are."""

import reprlib
from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any

from data.formats.coco_ids import Id, to_id

SAME_NAME = "categories with the name of another one, which are one class with it"
PROJECT = (
    "categories without boxes that are the supercategory of all others (Roboflow's project), no "
    "class"
)


class CocoCategories:
    """The categories of a json by id. A class is a name: categories of one name are one class."""

    def __init__(self) -> None:
        self.names: dict[Id, str] = {}
        self.notes: Counter[str] = Counter()
        self._supercategories: dict[Id, Any] = {}
        self._count = 0

    def add(self, category: dict[str, Any]) -> None:
        """Add a category; its name is stripped of spaces at the ends.

        Raises ValueError if it has no valid id and name, or the id of another category.
        """
        number, name = self._count, category.get("name")
        self._count += 1
        for key in ("id", "name"):
            if key not in category:
                raise ValueError(f"{key!r} of category {number} is missing")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"a category's name is not a string: found {reprlib.repr(name)}")
        name, category_id = name.strip(), to_id("category's id", category["id"])
        if self.names.get(category_id, name) != name:
            both = f"{self.names[category_id]!r} and {name!r}"
            raise ValueError(f"the categories {both} have the same id {category_id!r}")
        self.names[category_id] = name
        self._supercategories[category_id] = category.get("supercategory")

    def class_names(self, used: Collection[Id]) -> list[str]:
        """Return the names of the classes in the order of their ids; `used` are ids of boxes.

        Adds notes about categories that are not a class of their own. Raises ValueError if the ids
        have no order.
        """
        if len({isinstance(i, str) for i in self.names}) > 1:
            raise ValueError("the ids of the categories are numbers and texts (need one kind)")
        names = [self.names[i] for i in sorted(self.names) if not self._is_project(i, used)]
        if len(names) < len(self.names):
            self.notes[PROJECT] += len(self.names) - len(names)
        classes = list(dict.fromkeys(names))
        if len(classes) < len(names):
            self.notes[SAME_NAME] += len(names) - len(classes)
        similar = defaultdict(list)
        for name in classes:
            similar["".join(name.split()).casefold()].append(name)
        for group in similar.values():
            if len(group) > 1:
                self.notes[f"names that differ only in case or spaces, kept apart: {group}"] += len(
                    group
                )
        return classes

    def ids_by_name(self, used: Collection[Id]) -> dict[str, Id]:
        """Return the id of each class; of several categories with its name one of the `used`."""
        ids: dict[str, Id] = {}
        for category_id, name in self.names.items():
            if name not in ids or (ids[name] not in used and category_id in used):
                ids[name] = category_id
        return ids

    @property
    def have_same_names(self) -> bool:
        """Whether categories share a name."""
        return len(set(self.names.values())) < len(self.names)

    def _is_project(self, category_id: Id, used: Collection[Id]) -> bool:
        """Whether this is what Roboflow adds: the project, with no box, above all classes."""
        if category_id in used or self._supercategories[category_id] not in (None, "none"):
            return False
        others = [parent for i, parent in self._supercategories.items() if i != category_id]
        name = self.names[category_id]
        is_unique = list(self.names.values()).count(name) == 1
        return is_unique and bool(others) and all(parent == name for parent in others)
