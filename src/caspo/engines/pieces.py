"""The bytes that each token of a transformers tokenizer stands for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from typing import Any

__all__ = ["Pieces"]

_PROBE = "1 √⅓ ≈ ü ✅ 日本\n  x."


class Pieces(dict[int, bytes]):
    """The bytes of each token inside a text, found when first needed; a special token has none.

    Byte-level vocabularies (GPT-2, Llama 3, Qwen) spell bytes as letters, SentencePiece ones (Llama 2, Gemma, Mistral) write
    a space as "▁" and a byte as "<0xE2>". Of any other the text is decoded token by token, and what is no character alone is
    lost.

    Args:
        tokenizer: of transformers.
        shown: special tokens that have their names as text all the same (the marks of a model's thinking).
    """

    def __init__(self, tokenizer: Any, shown: Collection[int] = ()) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._added = {int(i): token for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
        self._special = frozenset(tokenizer.all_special_ids) - frozenset(shown)
        self._shown = frozenset(shown)
        self._before: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self._skip = len(self._decode(self._before))
        self._spelled = _spelling(tokenizer)
        if self._spelled is not None:
            ids = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
            known = b"".join(self[i] for i in ids).decode("utf-8", errors="replace")
            if known.lstrip() != str(tokenizer.decode(ids)).lstrip():
                self._spelled = None
            self.clear()

    def __missing__(self, token: int) -> bytes:
        self[token] = piece = self._piece(token)
        return piece

    def _piece(self, token: int) -> bytes:
        added = self._added.get(token)
        if token in self._special or (added is not None and added.special and token not in self._shown):
            return b""
        if added is not None:  # byte-level ones are no spelled bytes; Gemma's runs of spaces are written as "▁▁"
            return _sentence_piece(str(added.content)) if self._spelled is _sentence_piece else str(added.content).encode()
        name = self._tokenizer.convert_ids_to_tokens(token)
        if name is None:  # the embedding has more rows than the vocabulary has tokens
            return b""
        if self._spelled is not None:
            return self._spelled(name)
        # After another token: some tokenizers drop the space before the first word of what they decode.
        return self._decode([*self._before, token])[self._skip :].encode()

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def _spelling(tokenizer: Any) -> Callable[[str], bytes] | None:
    """How a vocabulary spells bytes, by the decoder of a fast tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return None
    decoder = json.loads(backend.decoder.__getstate__())
    kinds = {part["type"] for part in decoder.get("decoders", [decoder])}
    if "ByteLevel" in kinds:
        return _byte_level
    return _sentence_piece if kinds & {"ByteFallback", "Metaspace"} else None


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others follow from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_LETTERS = _byte_letters()


def _byte_level(name: str) -> bytes:
    return bytes(_LETTERS[letter] for letter in name) if all(letter in _LETTERS for letter in name) else name.encode()


def _sentence_piece(name: str) -> bytes:
    byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", name)
    return bytes([int(byte[1], 16)]) if byte else name.replace("▁", " ").encode()
