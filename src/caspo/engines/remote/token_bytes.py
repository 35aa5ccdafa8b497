"""The bytes of single tokens, by a server that only decodes: of a token that is part of a character it shows U+FFFD.

Such a token is decoded between tokens of single bytes that make its parts whole: then what it adds is plain. Those are the
tokens of characters so rare that vocabularies have none for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

__all__ = ["TokenBytes"]

_RARE = "\U000f2800\U000f2400\U000f0000\U00050800\ue820\ue400\uf720\u07fb\u0780"
"""Characters for private use, or for none, or of scripts with few readers."""
_BEFORE = (b"", b"\xdf", b"\xde", b"\xee", b"\xef", b"\xf3", b"\xf1")
"""What a token may go on with that begins inside a character: its rest has one byte, two, or three."""
_AFTER = (b"", b"\x80", b"\xa0", b"\x80\x80", b"\xa0\x80", b"\x90\x80\x80", b"\x80\x80\x80")
"""What may complete its last bytes."""


_LOST = "\ufffd".encode()


class TokenBytes:
    """Exact but where the server's vocabulary has no tokens of single bytes: there U+FFFD stays.

    Args:
        encode: tokens of a text as it is.
        decode: the text of some tokens.
    """

    def __init__(self, encode: Callable[[str], Sequence[int]], decode: Callable[[Sequence[int]], str]) -> None:
        self._encode, self._decode = encode, decode

    def __call__(self, token: int) -> bytes:
        """The bytes of a token inside a text."""
        shown = self._decoded([token])
        if "\ufffd" in shown:
            for before in _BEFORE:
                for after in _AFTER:
                    if not self._single.keys() >= {*before, *after}:
                        continue
                    first, last = ([self._single[byte] for byte in side] for side in (before, after))
                    data = self._decoded([*first, token, *last]).encode()
                    if _LOST not in data:
                        return data[len(before) : len(data) - len(after)]
        return shown.encode(errors="replace")

    @cached_property
    def _first(self) -> tuple[list[int], int]:
        """A token to stand before others (some tokenizers drop the space that a text begins with), and its length."""
        first = list(self._encode("a")[-1:])
        return first, len(self._decode(first))

    def _decoded(self, ids: Sequence[int]) -> str:
        first, length = self._first
        return self._decode([*first, *ids])[length:]

    @cached_property
    def _single(self) -> dict[int, int]:
        """Tokens of single bytes, by their bytes."""
        found = dict[int, int]()
        alone = len(self._encode("a"))
        for character in _RARE:
            data, ids = character.encode(), self._encode(f"a{character}")[alone:]
            if len(ids) == len(data):
                found |= dict(zip(data, ids, strict=True))
        return found
