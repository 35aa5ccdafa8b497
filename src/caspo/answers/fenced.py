"""The code that a solution states: the right one of its fenced blocks, or what is code of a text without any.

Fences are those of Markdown: three or more backticks or tildes, indented or not, closed by as many. A block whose language
is named and is not Python (a command that runs the program, what it prints) is no program; of a block without a language
it must be seen from its text.
"""

from __future__ import annotations

import ast
import re
import warnings

__all__ = ["blocks", "code_of", "defines", "parsed"]

_FENCE = re.compile(
    r"(?P<indent>[ \t>]*)(?P<before>[^`~]*?)(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[^\s`{]*)(?P<after>[^`]*)"
)
_MARKER = re.compile(r"(?:[-*+]|\d+[.)])[ \t]+")
_PYTHON = re.compile(r"(?:python|ipython|pypy|py)[\d.]*(?![a-z])")
_CODE_START = re.compile(r"^(?:(?:async\s+)?def\s+\w|class\s+\w|import\s+\w|from\s+[\w.]+\s+import\b|@\w)", re.MULTILINE)
_READS_INPUT = re.compile(r"\binput\s*\(|\bstdin\b|\bopen\(\s*0")
_CUTS = 20
"""How often the end of a text without fences is taken off until it is Python."""


def code_of(text: str, name: str | None = None) -> str | None:
    """The program of a solution, None where there is none.

    The last block that defines ``name``; if it is not given or none does, the last that reads its input; else the last
    program. Without fences: from the first definition or import on, as far as it is Python; or the whole text if it is
    indented, the body of a function, or a program that reads its input.
    """
    if fenced := blocks(text):
        python = [block for language, block in fenced if not language or _PYTHON.match(language)]
        if name and (found := [block for block in python if defines(block, name)]):
            return found[-1]
        named = [block for language, block in fenced if _PYTHON.match(language)]
        programs = named or [block for block in python if _is_program(block)] or python or [block for _, block in fenced]
        reading = [] if name else [block for block in programs if _READS_INPUT.search(block)]
        return (reading or programs)[-1]
    if match := _CODE_START.search(text):
        return _while_python(text[match.start() :].rstrip())
    if _READS_INPUT.search(text) and parsed(text) is not None:
        return text.strip()
    return text.rstrip() if text.startswith(("    ", "\t")) and text.strip() else None


def defines(code: str, name: str) -> bool:
    """Whether a function, class or variable of this name is defined, at whatever depth."""
    word = re.escape(name)
    return bool(
        re.search(rf"^[ \t]*(?:(?:async\s+)?def|class)\s+{word}\b|^{word}\s*(?::[^=\n]*)?=(?!=)", code, re.MULTILINE)
    )


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a text, each with its language in small letters; one that is not closed goes to the end.

    >>> blocks("1. So:\\n   ~~~python\\n   x = 1\\n   ~~~")
    [('python', 'x = 1')]
    """
    found: list[tuple[str, str]] = []
    inside: list[str] = []
    opened: re.Match[str] | None = None
    for line in [*text.replace("\r\n", "\n").split("\n"), None]:
        if opened and (line is None or _closes(line, opened)):
            if line is not None and not line.lstrip(" \t>").startswith(opened["fence"]):
                inside.append(line.rstrip().removesuffix(opened["fence"]))  # "return x```"
            found.append((opened["language"].lower(), _block(inside, opened)))
            opened = None
        elif opened and line is not None:
            inside.append(line)
        elif line is not None and (match := _FENCE.fullmatch(line)) and _opens(match):
            opened, inside = match, []
    inner = [blocks(block) if language in ("markdown", "md") else [] for language, block in found]
    return [x for one, within in zip(found, inner, strict=True) for x in (within or [one]) if x[1].strip()]


def _closes(line: str, opened: re.Match[str]) -> bool:
    """Not a fence in a docstring, which is indented by four or more."""
    bare = line.lstrip(" \t>")
    if bare.startswith(opened["fence"]):
        return len(line) - len(bare) < len(opened["indent"] + opened["before"]) + 4
    return opened["fence"][0] == "`" and line.rstrip().endswith(opened["fence"])


def _opens(match: re.Match[str]) -> bool:
    """Not a line that only speaks of fences, or strikes out a word with tildes."""
    before, after = match["before"], match["after"].strip()
    return not before or bool(_MARKER.fullmatch(before)) or (match["fence"][0] == "`" and not after)


def _block(lines: list[str], opened: re.Match[str]) -> str:
    """The lines as far to the left as their fence stands; as they are where the first one is further to the left."""
    indent = opened["indent"] + " " * (len(opened["before"]) if _MARKER.fullmatch(opened["before"]) else 0)
    first = next((line for line in lines if line.strip()), "")
    if not first.startswith(indent):
        return "\n".join(lines)
    return "\n".join(line[len(indent) :] if line.startswith(indent) else line.lstrip(" \t>") for line in lines)


def _is_program(block: str) -> bool:
    """Not what a program printed: a body, or statements of Python that are more than values and names."""
    if block.startswith((" ", "\t")):
        return True
    tree = parsed(block)
    plain = (ast.Constant, ast.Name, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.UnaryOp, ast.BinOp, ast.Compare)
    return tree is not None and not all(isinstance(x, ast.Expr) and isinstance(x.value, plain) for x in tree.body)


def parsed(code: str) -> ast.Module | None:
    """The syntax tree, None where the text is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in somebody's string
            return ast.parse(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _while_python(text: str) -> str:
    """Without the prose that follows the code; as it is where no end of it makes it Python."""
    lines = text.split("\n")
    for _ in range(_CUTS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ast.parse("\n".join(lines))
        except SyntaxError as error:
            lines = lines[: (error.lineno or 1) - 1]
        except (ValueError, MemoryError, RecursionError):
            break
        else:
            return "\n".join(lines).rstrip() or text
    return text
