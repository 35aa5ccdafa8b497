"""The rules by name: what settings and files call them, and the simple ones. `Reasoning` has a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from caspo.core.errors import ConfigError
from caspo.steps.reasoning import Reasoning
from caspo.steps.segmenter import Rule, sentence_ends

__all__ = ["RULES", "rule_name", "rule_of"]

_LONGEST = 16384
"""Characters of a step, at most."""


class _Simple:
    """Every line begins a step. Implements `Rule`."""

    by_line = True
    longest_line = longest_step = _LONGEST

    def content(self, text: str) -> bool:
        """Anything but white space."""
        return not text.isspace() and text != ""

    def breaks(self, line: str, looked: int) -> int | None:
        """Never inside a line."""
        return None

    def begins(self, line: str, blanks: int, *, whole: bool) -> bool | None:
        """Always."""
        return True

    def take(self, line: str, blanks: int, *, began: bool) -> None:
        """Nothing to note."""

    def blank(self) -> None:
        """Nothing to note."""

    def reset(self) -> None:
        """Nothing to note."""


class _Paragraphs(_Simple):
    def begins(self, line: str, blanks: int, *, whole: bool) -> bool | None:
        """After a blank line."""
        return blanks > 0


class _Sentences(_Simple):
    longest_line = 1000  # a fourth of the longest sentence: what may be its end is read again with each token

    def content(self, text: str) -> bool:
        """A letter or a digit."""
        return any(map(str.isalnum, text))

    def breaks(self, line: str, looked: int) -> int | None:
        """Where a sentence ends."""
        return next(sentence_ends(line, looked), None)


class _Delimited(_Simple):
    by_line = False

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter

    def breaks(self, line: str, looked: int) -> int | None:
        """After the delimiter."""
        at = line.find(self._delimiter, max(0, looked - len(self._delimiter)))
        return None if at < 0 else at + len(self._delimiter)


RULES: dict[str, Callable[[], Rule]] = {
    "reasoning": Reasoning,
    "line": _Simple,
    "paragraph": _Paragraphs,
    "sentence": _Sentences,
}
"""By name; beside them `delimiter:TEXT`."""

_DELIMITER = "delimiter:"


def rule_name(setting: Any) -> str:
    """The name of the rule that a setting means: a name, or ``{"delimiter": text}``.

    Raises:
        ConfigError: there is no such rule.
    """
    if isinstance(setting, Mapping) and set(setting) == {"delimiter"} and isinstance(setting["delimiter"], str):
        setting = f"{_DELIMITER}{setting['delimiter']}"
    if isinstance(setting, str) and (setting in RULES or setting.removeprefix(_DELIMITER) not in ("", setting)):
        return setting
    raise ConfigError(
        f"{setting!r} is no rule for steps. Choose one of {', '.join(RULES)}, or give the text that ends a step: "
        '{delimiter: "..."}.'
    )


def rule_of(name: str) -> Rule:
    """A fresh rule of this name."""
    return _Delimited(name.removeprefix(_DELIMITER)) if name.startswith(_DELIMITER) else RULES[name]()
