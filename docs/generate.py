"""Writes `cli.md` and `recipes.md` beside this file, from the commands and from the settings: `make docs`.

The text of the two pages is the help of the commands' parameters and the lines below the settings' fields; a test says when
a page is no longer what this makes of them. What is not here: the pages that people write.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo, OptionInfo

from caspo.cli.main import app
from caspo.cli.options import METHODS_HERE
from caspo.judges.choose import AnyJudgeSettings
from caspo.loop.recipe import CaspoRecipe
from caspo.loop.warm_start import SupervisedRecipe
from caspo.search import METHODS
from caspo.search.base import Unit

__all__ = ["command_page", "recipe_page"]

HERE = Path(__file__).resolve().parent

CLI_HEAD = """# Command line

This page is made by `make docs` from what `caspo COMMAND --help` shows. `caspo --version` prints the version.

A command that is killed goes on when it is run again with the same line. A mistake ends with one message and exit code 1,
Ctrl-C with 130. What a recipe may hold: [recipes.md](recipes.md).
"""

RECIPES_HEAD = """# Recipes

This page is made by `make docs` from the classes that check a recipe. A recipe is a YAML file. Every key can also be given
on the command line as `key=value`, for example `train.learning_rate=1e-5`. A key that is not here is an error. `null` leaves
a section or a method out. Finished recipes: [the folder `recipes`](../recipes/demo/README.md).

Confidences, shares and scores without a unit lie in [0, 1]. The methods of `evaluate` have the same settings in
`caspo solve` and in the server's `caspo` field.
"""

COUNTED = (
    "tokens", "questions", "problems", "solutions", "completions", "continuations", "traces", "paths", "prefixes", "pairs",
    "rounds", "sheets", "steps", "times", "measurements", "requests", "tries", "rows", "threads", "layers", "heads",
    "numbers",
)  # fmt: skip
MEASURED = ("seconds", "percent", "quantile", "probability", "share")
"""The unit of a number without a `Unit`: the first of these in its meaning, of those for an integer, of these for others."""


def command_page() -> str:
    """The page of all commands, from their signatures: the same whatever the terminal."""
    commands = [(info.name, info.callback) for info in app.registered_commands]
    lines = [CLI_HEAD]
    for name, callback in commands:
        assert name is not None
        assert callback is not None
        lines.append(f"- [{name}](#caspo-{name}): {_sentence(callback)}")
    for name, callback in commands:
        lines += _command(str(name), callback)
    return "\n".join(lines) + "\n"


def recipe_page() -> str:
    """The page of all kinds of recipes, section by section."""
    lines = [RECIPES_HEAD]
    for model, which in ((CaspoRecipe, ""), (SupervisedRecipe, " (supervised)")):
        lines += [f"## `kind: {which.strip(' ()') or 'caspo'}`", "", *_section(model, "", which)]
    return "\n".join(lines).rstrip() + "\n"


def _sentence(callback: Callable[..., Any]) -> str:
    return _text(inspect.getdoc(callback) or "").split("\n")[0]


def _command(name: str, callback: Callable[..., Any]) -> Iterator[str]:
    hints = get_type_hints(callback, include_extras=True)
    arguments, options = [], []
    for parameter in inspect.signature(callback).parameters.values():
        kind, *rest = get_args(hints[parameter.name]) or [hints[parameter.name]]
        info = next((i for i in rest if isinstance(i, ArgumentInfo | OptionInfo)), None)
        if info is None:
            continue  # the context, of a command that hands everything on
        (arguments if isinstance(info, ArgumentInfo) else options).append((parameter, kind, info))
    usage = " ".join(_placeholder(p, i) for p, _, i in arguments)
    yield from ("", f"## caspo {name}", "", "```")
    yield f"caspo {name} {usage or '...'}{' [OPTIONS]' if options else ''}"
    yield from ("```", "", _text(inspect.getdoc(callback) or ""))
    if arguments or options:
        yield from ("", "| | type | default | |", "| --- | --- | --- | --- |")
    for parameter, kind, info in arguments:
        yield _row(f"`{_placeholder(parameter, info).strip('[].')}`", *_described(parameter, kind, info))
    for parameter, kind, info in options:
        # In an annotation the first name of an option stands where its default would.
        names = [n for n in (info.default, *(info.param_decls or ())) if str(n).startswith("--")]
        shown = f"`{' '.join(names) or '--' + parameter.name.replace('_', '-')}`"
        yield _row(shown, *_described(parameter, kind, info))


def _placeholder(parameter: inspect.Parameter, info: Any) -> str:
    if info.metavar:
        return str(info.metavar)
    name = parameter.name.upper()
    return name if parameter.default is inspect.Parameter.empty else f"[{name}]"


def _described(parameter: inspect.Parameter, kind: Any, info: Any) -> tuple[str, str, str]:
    limits = [f"at least {info.min}"] if info.min is not None else []
    limits += [f"at most {info.max}"] if info.max is not None else []
    default = parameter.default
    if default is inspect.Parameter.empty:
        shown = "required"
    elif default is None or default == []:
        shown = ""
    else:
        shown = "off" if default is False else f"`{default}`"
    told = info.metavar if isinstance(info, OptionInfo) and info.metavar else _type(kind).removesuffix(" or null")
    return ", ".join([told, *limits]), shown, (info.help or "").replace(METHODS_HERE, ", ".join(METHODS))


def _section(model: type[BaseModel], path: str, which: str) -> Iterator[str]:
    """The table of a section's keys, its own before those it shares, then the sections in it.

    ``path`` is where in the recipe it stands, ``which`` ends its heading, so that no two are equal.
    """
    meanings = _meanings(model)
    inner: list[tuple[str, type[BaseModel]]] = []
    if set(model.model_fields) > {"kind"} or "kind" not in model.model_fields:
        yield from ("| key | type | default | unit | meaning |", "| --- | --- | --- | --- | --- |")
    for name, field in sorted(model.model_fields.items(), key=lambda item: item[0] not in model.__annotations__):
        if name == "kind":
            continue  # stands in the heading
        key = f"{path}.{name}" if path else name
        found = _models(field.annotation)
        if found and set(found) != set(get_args(AnyJudgeSettings)):
            inner += [(key, section) for section in found]
            kind = _type(field.annotation).replace("section", f"[section]({_anchor(key + which)})")
        elif found:
            inner += [(f"{key}: {section.model_fields['kind'].default}", section) for section in found]
            kind = f"a kind, or a [section](#the-kinds-of-{key.replace('.', '')}) with `kind`"
        else:
            kind = ", ".join([_type(field.annotation), *_limits(field)])
        meaning = meanings.get(name, "") or (_sentence(found[0]) if found else "")
        yield _row(f"`{name}`", kind, _default(field), _unit(field, meaning), meaning)
    yield ""
    judges = False
    for key, section in inner:
        if ": " in key and not judges:
            judges = True
            yield from (f"### The kinds of `{key.split(':')[0]}`", "")
        yield from (f"{'####' if ': ' in key else '###'} `{key}`{which}", "", _text(inspect.getdoc(section) or ""), "")
        yield from _section(section, key.split(": ")[0], which)


def _anchor(key: str) -> str:
    return "#" + re.sub(r"[^\w -]", "", key).replace(" ", "-").lower()


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """The text below each field, those of the base classes included."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if base is BaseModel or not issubclass(base, BaseModel):
            continue
        [tree] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, after in zip(tree.body, tree.body[1:], strict=False):
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and told:
                found[field.target.id] = _text(inspect.cleandoc(after.value.value))
    return found


def _models(kind: Any) -> list[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for part in get_args(kind) for model in _models(part)]


def _type(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        told = _type(parts[0])
    elif origin in (Union, types.UnionType):
        several = dict.fromkeys(_type(part) for part in parts if part is not type(None))
        told = " or ".join([*several, *(["null"] if type(None) in parts else [])])
    elif origin is Literal:
        told = ", ".join(f"`{part}`" for part in parts)
    elif origin in (list, tuple):
        told = f"list of {_type(parts[0])}"
    elif origin is dict:
        told = "mapping"
    elif issubclass(kind, BaseModel):
        told = "section"
    else:
        told = {Path: "path", str: "text", bool: "yes or no", int: "integer", float: "number"}[kind]
    return told


def _limits(field: FieldInfo) -> Iterator[str]:
    for limit in field.metadata:
        match limit:
            case annotated_types.Ge(ge=value):
                yield f"at least {value}"
            case annotated_types.Gt(gt=value):
                yield f"above {value}"
            case annotated_types.Le(le=value):
                yield f"at most {value}"
            case annotated_types.Lt(lt=value):
                yield f"below {value}"
            case annotated_types.MinLen(min_length=value) if value:
                yield "not empty"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if default is None:
        return "null"
    if isinstance(default, BaseModel):
        return "its defaults"
    if isinstance(default, tuple):
        return f"`[{', '.join(map(str, default))}]`"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default}`" if len(str(default)) < 40 else f"“{default}”"


def _unit(field: FieldInfo, meaning: str) -> str:
    for told in field.metadata:
        if isinstance(told, Unit):
            return told.name
    kinds = {field.annotation, *get_args(field.annotation)} if get_origin(field.annotation) is not tuple else set()
    units = COUNTED if int in kinds else MEASURED if float in kinds else ()
    return next((word for word in re.findall(r"[a-z]+", meaning.lower()) if word in units), "")


def _text(docstring: str) -> str:
    """A docstring as Markdown, a paragraph a line."""
    paragraphs = re.split(r"\n\s*\n", docstring.replace("``", "`"))
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    (HERE / "cli.md").write_text(command_page(), encoding="utf-8")
    (HERE / "recipes.md").write_text(recipe_page(), encoding="utf-8")
