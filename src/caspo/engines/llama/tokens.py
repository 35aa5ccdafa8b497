"""The tokenizer inside a GGUF file, by llama.cpp: text to tokens and back, and the chat template.

It offers what `caspo.engines.prompts` asks of a tokenizer, so that prompts are made one way for all engines. Templates are
rendered by transformers' own sandbox.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

from caspo.engines.prompts import turn_ends

__all__ = ["GgufTokenizer"]


class GgufTokenizer:
    """The vocabulary of a loaded model. May be used from any thread while the model lives.

    Args:
        api: the module `llama_cpp.llama_cpp`.
        model: llama.cpp's handle of the model.
    """

    def __init__(self, api: Any, model: Any) -> None:
        self._api, self._vocab = api, api.llama_model_get_vocab(model)
        self.size = int(api.llama_vocab_n_tokens(self._vocab))
        self.bos_token_id = self._known(api.llama_vocab_bos(self._vocab))
        self.eos_token_id = self._known(api.llama_vocab_eos(self._vocab))
        self.add_bos_token = bool(api.llama_vocab_get_add_bos(self._vocab))
        template = api.llama_model_chat_template(model, None)
        self.chat_template = template.decode("utf-8") if template else None
        self.piece = cache(self._piece)
        self._shown: frozenset[int] = frozenset()
        known = (i for i in range(self.size) if api.llama_vocab_is_eog(self._vocab, i))
        self.eos_ids = frozenset(known) | turn_ends(self)
        """All that end a generation: llama.cpp knows further ones by their names (end of turn, end of text)."""

    def show(self, marks: Collection[str]) -> None:
        """Take the special tokens that these are made of (the marks of a model's thinking) for text; they end nothing."""
        self._shown = frozenset(
            token for mark in marks for token in self.tokens(mark, special=True) if not self.piece(token)
        )
        self.eos_ids -= self._shown - {self.eos_token_id}
        self.piece.cache_clear()

    def __call__(self, text: str, add_special_tokens: bool = False) -> Mapping[str, list[int]]:
        """Tokens of a rendered prompt: special tokens written in it are meant. Of others BOS alone is added, if asked for
        and if the file says that texts begin with it."""
        added = [self.bos_token_id] if add_special_tokens and self.add_bos_token and self.bos_token_id is not None else []
        return {"input_ids": added + self.tokens(text, special=True)}

    def tokens(self, text: str, *, special: bool) -> list[int]:
        """Tokens of a text; with ``special`` those of special tokens written in it."""
        data = text.encode("utf-8", errors="replace")
        room = len(data) + 8  # never more tokens than bytes, but for a space that some vocabularies put in front
        found = (self._api.llama_token * room)()
        count = self._api.llama_tokenize(self._vocab, data, len(data), found, room, False, special)
        assert count >= 0, "more tokens than bytes"
        return list(found[:count])

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of some tokens; bytes that are no UTF-8 become U+FFFD."""
        pieces = (self.piece(i) if skip_special_tokens else self._piece(i, special=True) for i in token_ids)
        return b"".join(pieces).decode("utf-8", errors="replace")

    def apply_chat_template(
        self, messages: list[Mapping[str, str]], *, chat_template: str, tokenize: bool, add_generation_prompt: bool,
        **more: str,
    ) -> str:  # fmt: skip
        """The text of a prompt; ``more`` is what else the template may use. Templates raise errors of their own kinds."""
        from transformers.utils.chat_template_utils import render_jinja_template

        assert not tokenize
        named = {"bos_token": self.bos_token_id, "eos_token": self.eos_token_id}
        rendered, _ = render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            **{name: self._piece(i, special=True).decode("utf-8") for name, i in named.items() if i is not None},
            **more,
        )
        return str(rendered[0])

    def _known(self, token: int) -> int | None:
        return int(token) if token >= 0 else None

    def _piece(self, token: int, special: bool = False) -> bytes:
        """The bytes of a token; of a special one none, unless it is shown, or ``special``."""
        size, special = 32, special or token in self._shown
        while True:
            room = ctypes.create_string_buffer(size)
            count = self._api.llama_token_to_piece(self._vocab, token, room, size, 0, special)
            if count >= 0:
                return room.raw[:count]
            size = -count
