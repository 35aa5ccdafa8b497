"""What servers write about the tokens that they sampled, in whichever of their shapes, as one record a token, measured.

Two shapes of ``choices[].logprobs`` are read:

- llama.cpp's: ``content``, a list of ``{id, token, bytes, logprob, top_logprobs: [...]}``;
- OpenAI's older one (vLLM, SGLang, llama-cpp-python): ``tokens``, ``token_logprobs`` and ``top_logprobs``, a mapping from
  text to log p for every token; token ids stand beside it (``token_ids``) or in it ("token_id:17"), if asked for.

Texts are bytes here: of a character made of several tokens llama.cpp tells each token's own bytes, OpenAI writes
"bytes:\\xe2\\x88", and of others, which write U+FFFD for each, the reply's text tells what they come to (`repaired`).
Missing, NaN and positive log-probabilities are errors, never confidence. Not here: requests and streams.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caspo.confidence.signals import MASS_TOLERANCE, TOLERANCE, entropy_bounds
from caspo.core.errors import EngineError
from caspo.records import Measured

__all__ = ["RANKS", "BadReply", "Entry", "Position", "measure", "positions", "repaired"]

_AS_ID, _AS_BYTES = "token_id:", re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")
_LOST = "\ufffd".encode()
_NO_LIST = "the server sent a token without the most probable ones in its place"

RANKS = 32
"""Most probable tokens of a position whose text is read, and that are remembered."""


class BadReply(EngineError):
    """The server's reply is not what its API promises; another try may be."""


class Entry(NamedTuple):
    """One token at one position."""

    token: int | None
    """None where the server gives no ids."""
    piece: bytes | None
    """Its text; empty for special tokens; None where only the id was given."""
    logprob: float


class Position(NamedTuple):
    """A sampled token, and the most probable ones in its place, most probable first."""

    taken: Entry
    top: tuple[Entry, ...]


def positions(choice: Mapping[str, Any], most: int) -> list[Position]:
    """The tokens of one ``choices`` entry, each with at most ``most`` alternatives.

    A sampled token that servers append when it is not among the most probable comes last by its log p, and is cut off.

    Raises:
        BadReply: tokens without log-probabilities, or such that are none.
    """
    logprobs = choice.get("logprobs")
    try:
        if not logprobs:
            if choice.get("token_ids"):
                raise BadReply("the server sent tokens without log-probabilities")
            return []
        if isinstance(logprobs.get("content"), list):
            return [_of_content(item, most) for item in logprobs["content"]]
        return _of_lists(choice, logprobs, most)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadReply(f"the server's log-probabilities are malformed ({type(error).__name__}: {error})") from error


def _of_content(item: Mapping[str, Any], most: int) -> Position:
    best = sorted(item["top_logprobs"], key=lambda other: -float(other["logprob"]))[:most]
    if not best:
        raise BadReply(_NO_LIST)
    return Position(_entry(item), tuple(_entry(other, read=place < RANKS) for place, other in enumerate(best)))


def _entry(item: Mapping[str, Any], *, read: bool = True) -> Entry:
    token, given = item.get("id"), item.get("bytes")
    if token is not None and not read:  # one of a whole vocabulary
        return Entry(int(token), None, _logprob(item["logprob"]))
    piece = bytes(given) if given is not None else str(item["token"]).encode(errors="replace")
    return Entry(None if token is None else int(token), piece, _logprob(item["logprob"]))


def _of_lists(choice: Mapping[str, Any], logprobs: Mapping[str, Any], most: int) -> list[Position]:
    tokens: Sequence[str] = logprobs["tokens"]
    values, tops, ids = logprobs["token_logprobs"], logprobs["top_logprobs"], choice.get("token_ids")
    if not len(tokens) == len(values) == len(tops or ()) or (ids is not None and len(ids) != len(tokens)):
        raise BadReply(
            f"the server sent {len(ids) if ids is not None else len(tokens)} tokens with {len(values)} log-probabilities "
            f"and {len(tops or ())} lists of the most probable ones"
        )
    found = []
    for place, (token, value, top) in enumerate(zip(tokens, values, tops, strict=True)):
        taken = _named(token, value)
        if ids is not None and taken.token is None:
            taken = taken._replace(token=int(ids[place]))
        best = sorted((_named(name, p) for name, p in top.items()), key=lambda entry: -entry.logprob)[:most]
        if not best:
            raise BadReply(_NO_LIST)
        found.append(Position(taken, tuple(best)))
    return found


def _named(name: str, value: Any) -> Entry:
    if name.startswith(_AS_ID):
        return Entry(int(name.removeprefix(_AS_ID)), None, _logprob(value))
    written = _AS_BYTES.fullmatch(name)
    piece = bytes.fromhex(written[1].replace("\\x", "")) if written else name.encode(errors="replace")
    return Entry(None, piece, _logprob(value))


def repaired(found: Sequence[Position], text: str) -> list[Position]:
    """The tokens of a reply with this text, of which some are known by their text alone, and are no whole characters.

    Of some that follow one another the last has what they come to, the others have nothing: that much the text tells.
    """
    done, at = list(found), 0
    for place, position in enumerate(found):
        piece = position.taken.piece or b""
        if _LOST in piece:
            after = next((p.taken.piece for p in found[place + 1 :] if p.taken.piece), None)
            if after is None or _LOST not in after:
                end = len(text) if after is None else text.find(after.decode(), at)
                if end < 0:
                    return list(found)
                piece, at = text[at:end].encode(errors="replace"), end
            else:
                piece = b""
            done[place] = position._replace(taken=position.taken._replace(piece=piece))
        elif piece:
            at = text.find(piece.decode(errors="replace"), at) + len(piece.decode(errors="replace"))
    return done


def _logprob(value: Any) -> float:
    number = float(value)
    if math.isnan(number):
        raise BadReply("the server sent a log-probability that is NaN")
    if number > TOLERANCE:
        raise BadReply(
            f"the server sent a log-probability of {number:.6g}, which is above 0 (vLLM shows logits if it was started with "
            "--logprobs-mode raw_logits or processed_logits)"
        )
    return min(number, 0.0)


def measure(position: Position, k: int, vocab_size: int) -> Measured:
    """Entropy, its upper bound and the rest of one position, of whose ``k`` most probable tokens the server was asked.

    Where a token above the last may be missing (`_whole`), the lower bound is that of all the rest in one token. Varentropy
    is NaN unless the whole vocabulary was there: a few tokens bound it badly.

    Raises:
        BadReply: the probabilities cannot be those of the most probable tokens.
    """
    logs = np.array([entry.logprob for entry in position.top])
    probs = np.exp(logs)
    taken = position.taken.logprob
    if not math.isfinite(taken):
        raise BadReply("the server sent a token of probability 0")
    whole = _whole(position, min(k, vocab_size))
    if whole and taken > logs[0] + TOLERANCE:
        raise BadReply("the sampled token is more probable than the most probable one")
    if whole:
        try:
            low, high = (float(bound[0]) for bound in entropy_bounds(logs[None], vocab_size))
        except EngineError as error:
            raise BadReply(str(error)) from error
    else:
        low, high = _bounds_of_some(probs, vocab_size)
    varentropy = math.nan
    if len(logs) >= vocab_size:
        finite = np.where(probs > 0, logs, 0.0)
        varentropy = max(0.0, float((probs * finite**2).sum() - (probs * finite).sum() ** 2))
    margin = float(probs[0] - (probs[1] if len(probs) > 1 else max(0.0, 1.0 - probs[0])))
    return Measured(low, taken, max(taken, float(logs[0])), max(0.0, margin), varentropy, entropy_upper=high)


def _whole(position: Position, k: int) -> bool:
    """Whether the k most probable tokens are all there.

    In a mapping from texts, two tokens that read alike are one entry, and a sampled token that is not among the most
    probable is one more. Where the sampled token is the last of k entries, it may stand for one that is missing.
    """
    last = position.top[-1]
    if len(position.top) < k:
        return False
    return last.token is not None or abs(last.logprob - position.taken.logprob) > TOLERANCE


def _bounds_of_some(probs: NDArray[np.float64], vocab_size: int) -> tuple[float, float]:
    """Bounds of the entropy from the probabilities of some tokens, whichever: the rest in one token, or spread evenly."""
    mass = float(probs.sum())
    if mass > 1.0 + MASS_TOLERANCE:
        raise BadReply(f"the probabilities of different tokens sum to {mass:.6g}, which is above 1")
    rest = max(0.0, 1.0 - mass)
    low = float(-(probs * np.log(np.where(probs > 0, probs, 1.0))).sum()) - (rest * math.log(rest) if rest > 0 else 0.0)
    return low, low + rest * math.log(max(1, vocab_size - len(probs)))
