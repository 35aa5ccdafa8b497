"""Tokens that llama.cpp's server leaves out: those of a character made of several, but for the last.

It tells of a token only once the text is whole, and gives the last one the bytes of all. Which tokens they were is what the
server's tokenizer makes of these bytes, if that ends in the same token and is as many. What was measured of each is asked
again: its place is computed once more (from the server's cache), and the draw there is forced to a letter, for otherwise
nothing would be told of it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caspo.core.errors import EngineError
from caspo.engines.remote.pool import Endpoint, Pool
from caspo.engines.remote.probe import Features, neutral
from caspo.engines.remote.reply import BadReply, Position, positions

__all__ = ["Lost", "refuse_lost"]

_FORCED = 1000.0
"""Added to a logit: more than any other token has."""


class Lost:
    """Finds them. Runs in the pool's loop."""

    def __init__(self, pool: Pool, features: Features, vocab_size: int) -> None:
        self._pool, self._features, self._vocab_size = pool, features, vocab_size
        self._letter: int | None = None

    async def found(self, there: Sequence[int], new: Sequence[Position], missing: int, k: int) -> list[Position]:
        """The tokens that a reply tells of, ``new``, with the ``missing`` ones before the first of them.

        Args:
            there: all tokens before.
            new: the tokens that were told of; at least one.
            missing: how many were not.
            k: most probable tokens wanted at each place.

        Raises:
            EngineError: it cannot be known which they were.
        """
        first, *others = new
        whole = first.taken.piece or b""
        pieces = await self._pieces(whole) if self._features.server == "llama.cpp" and self._features.ids else []
        if [token for token, _ in pieces[-1:]] != [first.taken.token] or len(pieces) != missing + 1:
            refuse_lost(0, missing)
        found = list[Position]()
        for place, (token, piece) in enumerate(pieces[:-1]):
            position = await self._look([*there, *(token for token, _ in pieces[:place])], token, k)
            found.append(position._replace(taken=position.taken._replace(piece=piece)))
        own = first.taken._replace(piece=pieces[-1][1])
        return [*found, first._replace(taken=own), *others]

    async def _look(self, prefix: Sequence[int], token: int, k: int) -> Position:
        """What stands at a place, where this token was drawn."""
        if self._letter is None:
            self._letter = (await self._pieces(b"a"))[-1][0]
        for most in (k, self._vocab_size):
            body = {
                "model": self._features.model, "prompt": list(prefix), "max_tokens": 1, "temperature": 0.0,
                "logit_bias": [[self._letter, _FORCED]], "logprobs": most, **neutral(True, self._vocab_size),
            }  # fmt: skip

            async def ask(endpoint: Endpoint, body: dict[str, Any] = body, most: int = most) -> Position:
                reply = await self._pool.request(endpoint, "POST", "/v1/completions", body)
                found = positions(reply["choices"][0], most) if isinstance(reply, dict) else []
                if not found:
                    raise BadReply("the server sent no log-probabilities")
                return found[0]

            position = await self._pool.retried(ask)
            taken = next((entry for entry in position.top if entry.token == token), None)
            if taken is not None:
                return Position(taken, position.top[:k])
        raise BadReply("the server did not tell of a token that it had drawn")

    async def _pieces(self, text: bytes) -> list[tuple[int, bytes]]:
        """The tokens that the server makes of a text, with their bytes; none where it cannot."""
        try:
            body = {"content": text.decode(), "add_special": False, "parse_special": False, "with_pieces": True}
            reply: Any = await self._pool.ask("POST", "/tokenize", body)
            return [(int(token["id"]), _bytes(token["piece"])) for token in reply["tokens"]]
        except (UnicodeDecodeError, LookupError, TypeError, ValueError):
            return []


def _bytes(piece: str | list[int]) -> bytes:
    return piece.encode() if isinstance(piece, str) else bytes(piece)


def refuse_lost(received: int, named: int) -> None:
    """Raise `EngineError` where a server has told of fewer tokens than it generated."""
    if received < named:
        raise EngineError(
            f"The server generated {named} tokens and told of {received}: others are lost (parts of a character that is "
            "made of several tokens, say), and for them there is no confidence."
        )
