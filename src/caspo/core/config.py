"""Recipes: YAML checked against a pydantic model, every key overridable as ``key=value``, unknown keys refused."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from caspo.core.errors import ConfigError
from caspo.core.rows import lone_surrogate

__all__ = ["Config", "flatten", "load_recipe", "parse_yaml", "settings_from"]

T = TypeVar("T", bound="Config")


class Config(BaseModel):
    """Base of every recipe section: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def parse_yaml(text: str) -> Any:
    """What YAML says.

    Raises:
        yaml.YAMLError: it is none, a key is written twice in one mapping (with the lines), or a value holds itself.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_twice(node, set(), ())
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except ValueError as error:  # a date or a number that Python has none of
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()


def _refuse_twice(node: yaml.Node, seen: set[int], inside: tuple[int, ...]) -> None:
    """YAML forbids a key twice, and its readers take the last one without a word; and nobody can use what holds itself."""
    if id(node) in inside:
        raise yaml.YAMLError(f"the value in line {node.start_mark.line + 1} holds itself")
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    inside = (*inside, id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_twice(item, seen, inside)
    if isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode):
                if first := lines.get((key.tag, key.value)):
                    both = f"line {line}" if first == line else f"line {first} and line {line}"
                    raise yaml.YAMLError(f"the key {key.value!r} is written twice, in {both}; keep one of them")
                lines[key.tag, key.value] = line
            _refuse_twice(value, seen, inside)


def load_recipe(model: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Read ``path`` as ``model``, with ``overrides`` such as ``train.learning_rate=1e-5`` applied on top.

    Raises `ConfigError` that names the file, the key, what is wrong with it and the nearest known key.
    """
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read the recipe {path}: {error.strerror}. Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"The recipe {path} is not valid YAML: {error}. Correct it and run again.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"The recipe {path} holds {type(data).__name__}, not keys with values.")
    if half := lone_surrogate(data):
        raise ConfigError(f"The recipe {path} holds {half}, half of a character. Correct it and run again.")
    return _validated(model, data, f"The recipe {path}", overrides)


def settings_from(model: type[T], given: Sequence[str] | Mapping[str, Any] = (), what: str = "These settings") -> T:
    """The defaults of ``model`` with ``key=value`` applied, or with the values of a mapping; errors as in `load_recipe`."""
    if isinstance(given, Mapping):
        return _validated(model, dict(given), what)
    return _validated(model, {}, what, given)


def _validated(model: type[T], data: dict[str, Any], what: str, overrides: Sequence[str] = ()) -> T:
    for override in overrides:
        _apply(data, override)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{what} cannot be used:\n{_explain(model, error)}") from error


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not an override. Write key=value, for example train.learning_rate=1e-5.")
    target: Any = data
    *parents, last = key.split(".")
    for parent in parents:
        target = target.setdefault(parent, {}) if isinstance(target, dict) else None
    if not isinstance(target, dict):
        raise ConfigError(f"{key!r} cannot be set: {'.'.join(parents)!r} holds a value, not keys.")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value of the override {override!r} is not valid YAML: {error}") from error
    target[last] = value


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _known_keys(model, problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            lines.append(f"  {path}: unknown key; {hint}")
        else:
            told = problem["msg"].removeprefix("Value error, ")
            # What our own validators say is enough, and what they were given may hold a password.
            got = "" if problem["type"] == "value_error" else f" (got {problem['input']!r})"
            lines.append(f"  {path}{': ' if path else ''}{told}{got}")
    return "\n".join(lines)


def _known_keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    sections: list[Any] = [model]
    for part in map(str, path):
        # of several sections the next part names the ``kind``
        chosen = [s for s in sections if len(sections) > 1 and s.model_fields["kind"].default == part]
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        sections = chosen or [found for field in fields for found in _sections(field.annotation)]
    return sorted({key for section in sections for key in section.model_fields})


def _sections(annotation: Any) -> list[Any]:
    """The sections that a key may hold: of `Section | None` the one, of a choice of sections all."""
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [found for part in get_args(annotation) for found in _sections(part)]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, by their dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    parts = (flatten(inner, f"{prefix}.{key}" if prefix else str(key)) for key, inner in value.items())
    return {key: leaf for part in parts for key, leaf in part.items()}
