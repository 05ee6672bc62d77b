"""Read YAML files (hyp and data) into pydantic models, with one-line errors."""

import difflib
import re
import reprlib
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from utils import compat
from utils.errors import UserError
from utils.textfile import decode_text

Model = TypeVar("Model", bound=BaseModel)
MAX_ALIASES = 20  # in a file; nested ones multiply, and 20 expand it at most about 1,600 times
SHORT = reprlib.Repr()  # for messages: a value can be as long as its file
SHORT.maxstring = SHORT.maxother = 100


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number and refuses duplicate keys and many aliases."""

    num_aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self.num_aliases += 1
            if self.num_aliases > MAX_ALIASES:
                # A line of lists of aliases of lists of aliases can stand for 10^9 values.
                raise yaml.MarkedYAMLError(
                    problem=f"more than {MAX_ALIASES} aliases",
                    problem_mark=self.peek_event().start_mark,
                )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int):
                continue
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"duplicate key {key!r}", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


# Numbers as in YAML 1.2. In YAML 1.1, which PyYAML follows, 1e-3 is a text and 1000:1.0 is 60001
# seconds.
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = compat.implicit_resolvers_without(yaml.SafeLoader, (_INT, _FLOAT))
_Loader.add_implicit_resolver(_INT, re.compile(r"^[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


def find_file(path: str, fallback_dir: Path, flag: str) -> Path:
    """Return the file `path`, else `path` in `fallback_dir`. Raises UserError if neither is one.

    `flag` is the argument that named it.
    """
    fallback = fallback_dir / path
    for candidate in (Path(path), fallback):
        if candidate.is_file():
            return candidate
    if not path:
        raise UserError(f"{flag}: found '' (need the name of a file)")
    if Path(path).is_dir():
        raise UserError(f"{path}: is a directory (need a file)")
    hint = f" (also looked for {fallback})" if fallback != Path(path) else ""
    raise UserError(f"{path}: file not found{hint}")


def read_yaml(path: Path, model: type[Model]) -> Model:
    """Read the file `path` as a `model`. Raises UserError if it cannot be read or is invalid."""
    try:
        content = yaml.load(decode_text(path.read_bytes()), _Loader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}: line {line}: not valid UTF-8 (save it as UTF-8)") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = error.problem or error.context or ""
        hint = " (YAML indents with spaces)" if r"'\t'" in problem else ""
        raise UserError(f"{path}: {position}{problem}{hint}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        kind = {"str": "text", "list": "a list"}.get(type(content).__name__, "a single value")
        raise UserError(f"{path}: found {kind}, need lines of 'key: value'")
    return validate(content, model, str(path))


def validate(content: dict[str, Any], model: type[Model], source: str) -> Model:
    """Return `content` as a `model`. Raises UserError, starting with `source`, if it is invalid."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{source}: {_message(error, model)}") from None


def _message(error: ValidationError, model: type[BaseModel]) -> str:
    errors = error.errors()
    # A misspelled key comes first: it is often why another one is missing.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    location, model = _without_tags(first["loc"], model)
    key = ": ".join(location)
    if first["type"] == "extra_forbidden":
        known = list(model.model_fields)
        matches = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {matches[0]!r}?" if matches else f"known keys: {', '.join(known)}"
        return f"unknown key {key!r} ({hint})"
    if first["type"] == "missing":
        return f"key {key!r} is missing{_similar_key(first, model)}"
    if first["type"] == "union_tag_invalid":
        tag = first["ctx"]["discriminator"].strip("'")
        allowed = first["ctx"]["expected_tags"].replace("'", "")
        return f"{key}: {tag}: found {SHORT.repr(first['input'].get(tag))}, allowed are {allowed}"
    problem = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if first["type"] == "value_error":  # a message of our own validators, which says what was found
        return f"{key}: {problem}{more}" if key else f"{problem}{more}"
    return f"{key}: found {SHORT.repr(first.get('input'))}, {problem}{more}"


def _similar_key(error: Any, model: type[BaseModel]) -> str:
    """Return a hint if a key of the file is like the one that is missing."""
    unknown = [str(key) for key in error["input"] if key not in model.model_fields]
    matches = difflib.get_close_matches(str(error["loc"][-1]), unknown, n=1, cutoff=0.6)
    return f" (found {matches[0]!r})" if matches else ""


def _without_tags(
    location: tuple[str | int, ...], model: type[BaseModel]
) -> tuple[list[str], type[BaseModel]]:
    """Return the keys of `location` as in the file, and the model of the last key's block.

    pydantic inserts the tag of a discriminated union between the keys, or the type of another's.
    """
    keys, parts = [], list(location)
    while parts:
        part = str(parts.pop(0))
        if part == model.__name__ or part.startswith("list["):
            continue
        keys.append(part)
        if not parts or part not in model.model_fields:
            continue
        blocks = _block_models(model.model_fields[part].annotation)
        if len(blocks) > 1:
            tag = parts.pop(0)
            blocks = [block for block in blocks if _has_tag(block, tag)]
        model = blocks[0] if blocks else model
    return keys, model


def _block_models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that an annotation allows: the annotation itself, or those of a union."""
    types = (annotation, *get_args(annotation))
    return [t for t in types if isinstance(t, type) and issubclass(t, BaseModel)]


def _has_tag(block: type[BaseModel], tag: str | int) -> bool:
    return any(tag in get_args(field.annotation) for field in block.model_fields.values())
