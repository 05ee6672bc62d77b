"""Finds a YAML file, reads it into a pydantic model, and turns whatever is wrong with it into one sentence.

Hyp files and data files are both read here, so that both name their mistakes alike.
"""

import difflib
import re
import reprlib
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from utils.errors import UserError

Model = TypeVar("Model", bound=BaseModel)
ALIASES = 20  # in a file; with so few, at most some 1,600 times as much is meant as is written
SHORT = reprlib.Repr()  # for a sentence: a value may be as long as its file
SHORT.maxstring = SHORT.maxother = 100


class _Loader(yaml.SafeLoader):
    """Safe YAML that takes 1e-3 for a number, a key given twice for a mistake, and at most `ALIASES` aliases."""

    aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if (
                self.aliases > ALIASES
            ):  # lists of aliases of lists of aliases: a line can stand for 10^9
                mark = self.peek_event().start_mark
                raise yaml.MarkedYAMLError(
                    problem=f"found more than {ALIASES} aliases, need fewer", problem_mark=mark
                )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int) and key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark
                )
            if isinstance(key, str | int):
                seen.add(key)
        return super().construct_mapping(node, deep)


# Numbers as YAML 1.2 has them. 1.1, which PyYAML follows, wants a point in 1.0e-3, and takes 1000:1.0 for 60001 seconds.
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"^[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


def find_file(path: str, folder: Path) -> Path:
    """`path` as given if it is there, else below `folder`. Raises UserError when it is in neither place."""
    for candidate in (Path(path), folder / path):
        if candidate.is_file():
            return candidate
    raise UserError(f"{path}: is not there, nor is {folder / path}")


def read_yaml(path: Path, model: type[Model]) -> Model:
    """The file at `path` as a `model`. Raises UserError when it cannot be read, parsed or validated."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no text in UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{path}: {where}{error.problem or error.context}") from None
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: found a {type(content).__name__}, need lines of 'key: value'")
    return validated(content, model, str(path))


def validated(content: dict[str, Any], model: type[Model], source: str) -> Model:
    """`content` as a `model`. Raises UserError, which begins with `source`, for the first thing that is wrong."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{source}: {_sentence(error, model)}") from None


def _sentence(error: ValidationError, model: type[BaseModel]) -> str:
    errors = error.errors()
    first = next(
        (e for e in errors if e["type"] == "extra_forbidden"), errors[0]
    )  # a misspelt key is why another is missing
    location, model = _without_tags(first["loc"], model)
    key = ": ".join(location)
    if first["type"] == "extra_forbidden":
        known = list(model.model_fields)
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    if first["type"] == "missing":
        return f"key {key!r} is missing"
    if first["type"] == "union_tag_invalid":
        tag = first["ctx"]["discriminator"].strip("'")
        allowed = first["ctx"]["expected_tags"].replace("'", "")
        return f"{key}: {tag}: found {SHORT.repr(first['input'].get(tag))}, allowed are {allowed}"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if first["type"] == "value_error":  # a validator's own sentence says what was found
        return f"{key}: {message}{more}" if key else f"{message}{more}"
    return f"{key}: found {SHORT.repr(first.get('input'))}, {message}{more}"


def _without_tags(
    location: tuple[str | int, ...], model: type[BaseModel]
) -> tuple[list[str], type[BaseModel]]:
    """The keys as the file has them, which pydantic mixes with the tags of unions, and the model of the block of the last one."""
    keys, parts = [], list(location)
    while parts:
        part = str(parts.pop(0))
        keys.append(part)
        if not parts or part not in model.model_fields:
            continue
        annotation = model.model_fields[part].annotation
        blocks = [
            m
            for m in (annotation, *get_args(annotation))
            if isinstance(m, type) and issubclass(m, BaseModel)
        ]
        if len(blocks) > 1:
            tag = parts.pop(0)
            blocks = [
                m
                for m in blocks
                if any(tag in get_args(field.annotation) for field in m.model_fields.values())
            ]
        model = blocks[0] if blocks else model
    return keys, model
