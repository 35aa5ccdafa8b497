"""Engine `scripted`: a model whose every continuation is written down beforehand, for tests and examples. No torch.

    engine = ScriptedEngine({
        "How many?\n": [Scripted("2 + 3 = 5\n", 0.7), Scripted("2 + 3 = 6\n", 0.3, entropy=1.2)],
        "How many?\n2 + 3 = 5\n": [Scripted("The answer is 5.", eos=True)],
        "How many?\n2 + 3 = 6\n": [Scripted("The answer is 6.", eos=True)],
    })

Keys are the whole text before the continuation: the question, a line break, and the steps so far. A request goes on from
entry to entry until one ends with EOS, and may begin inside an entry. Every character is a token, so every prefix of a text
is a prefix of its tokens. One that asks for a step ends with its entry where there is no entry after it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from caspo.core.errors import ConfigError, DataError, EngineError
from caspo.engines.base import Completion, Message, OnDone, Request
from caspo.engines.rows import Row
from caspo.engines.run import run
from caspo.records import Measured
from caspo.steps import Reading, text_of

__all__ = ["EOS", "Script", "Scripted", "ScriptedEngine"]

EOS = 0x110000
"""The end-of-sequence token: the first number that is no character."""

_UNSCRIPTED = 1e-9


@dataclass(frozen=True)
class Scripted:
    """One continuation."""

    text: str
    probability: float = 1.0
    """Weight among the continuations of the same prefix; they need not sum to 1."""
    entropy: float | Sequence[float] | None = None
    """Entropy of each token (EOS included), nats: one number for all, or one each. By default that of the choice among the
    continuations for the first token, 0 for the others."""
    eos: bool = False
    """The solution ends here."""


Script = Mapping[str, Sequence[Scripted]] | Callable[[str], Sequence[Scripted]]
"""From the text so far to its continuations."""


class ScriptedEngine:
    """Plays a script, with traces that agree with it: a choice is made at the first token of a continuation.

    Temperature 0 takes the most probable continuation (of equals the first); otherwise the request's seed draws one.
    """

    vocab_size = EOS + 1
    """All characters, and EOS."""
    context_length = 1 << 30
    """No limit."""

    def __init__(self, script: Script, name: str = "scripted", reading: Reading | None = None) -> None:
        self._script, self.name, self.reading = script, name, reading or Reading()

    def prompt(self, question: str) -> tuple[int, ...]:
        """The question and a line break, as tokens."""
        if not question.strip():
            raise DataError("The question is empty: there is nothing to solve. Give a question with some text.")
        return tuple(map(ord, f"{question}\n"))

    def chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """As `prompt` for a single question; of more messages one a line."""
        return self.prompt("\n".join(message["content"] for message in messages))

    def encode(self, text: str, *, begins: bool = False) -> tuple[int, ...]:
        """The text's characters; there is no BOS."""
        return tuple(map(ord, text))

    def pieces(self, token_ids: Sequence[int]) -> list[bytes]:
        """The character of each token; EOS is empty."""
        return [b"" if token == EOS else chr(token).encode(errors="replace") for token in token_ids]

    def forget(self) -> None:
        """Nothing is kept."""

    def generate(self, requests: Sequence[Request], on_done: OnDone | None = None) -> list[Completion]:
        """Play every request, and those that ``on_done`` adds; results in the order of their places.

        Raises:
            EngineError: the script has no continuation for a text.
        """
        return run(self.batch(), requests, on_done)

    def batch(self, most: int | None = None) -> ScriptedBatch:
        """An empty batch; every step plays one request to its end."""
        return ScriptedBatch(self, 256 if most is None else most)

    def play(self, request: Request) -> Completion:
        """One request, to its end."""
        prefix = text_of(self.pieces(request.prefix_ids))
        row = Row(0, request, turn=self.reading.turn, before=prefix[-1:].encode())
        while row.finish is None:
            text = prefix + row.text
            if request.step is not None and row.tokens and not self._scripted(text):
                row.finish = "stop"  # all that is written down of the step
                break
            options = self._continuations(text)
            chosen = _choose(options, request, len(row.tokens))
            for token, measured in zip(_tokens(options[chosen]), _trace(options, chosen, request.top_k), strict=True):
                (piece,) = self.pieces([token])
                if row.take(token, measured, piece, ends=token == EOS, context_length=self.context_length):
                    break
        return row.completion()

    def _scripted(self, text: str) -> Sequence[Scripted]:
        """What is written down after a text: an entry for it, or the rest of the entry in which it ends."""
        for end in range(len(text), -1, -1):
            found = (self._script(text[:end]) if callable(self._script) else self._script.get(text[:end])) or ()
            if end == len(text) and found:
                return found
            begun = [_rest(option, text[end:]) for option in found if option.text.startswith(text[end:])]
            rest = [option for option in begun if option.text or option.eos]
            if rest:
                return rest
        return ()

    def _continuations(self, text: str) -> Sequence[Scripted]:
        found = self._scripted(text)
        if not found:
            raise EngineError(f"The script has no continuation for the text {text!r}. Add an entry for exactly this text.")
        for option in found:
            if not (option.text or option.eos) or option.probability <= 0:
                raise ConfigError(f"{option!r} cannot be played: it needs a text (or eos) and a probability above 0.")
        return found


class ScriptedBatch:
    """The requests that wait to be played, the oldest first."""

    def __init__(self, engine: ScriptedEngine, most: int) -> None:
        self._engine, self._most = engine, most
        self._waiting: dict[int, Request] = {}

    @property
    def free(self) -> int:
        """How many more requests it takes now."""
        return self._most - len(self._waiting)

    def add(self, place: int, request: Request) -> None:
        """Take a request in."""
        self._waiting[place] = request

    def drop(self, place: int) -> None:
        """Give up a request."""
        self._waiting.pop(place, None)

    def step(self) -> list[tuple[int, Completion | EngineError]]:
        """Play the oldest request."""
        for place in self._waiting:
            request = self._waiting.pop(place)
            try:
                return [(place, self._engine.play(request))]
            except EngineError as error:
                return [(place, error)]
        return []

    def close(self) -> None:
        """Give up what waits."""
        self._waiting.clear()


def _rest(option: Scripted, begun: str) -> Scripted:
    """An option of which the beginning was played already."""
    entropy = option.entropy
    if entropy is not None and not isinstance(entropy, (int, float)):
        entropy = list(entropy)[len(begun) :]
    return replace(option, text=option.text[len(begun) :], entropy=entropy)


def _tokens(option: Scripted) -> list[int]:
    return [*map(ord, option.text), *([EOS] if option.eos else [])]


def _choose(options: Sequence[Scripted], request: Request, position: int) -> int:
    """The option's index: the one of the request's rank, the most probable one, or one drawn from those within ``top_p``."""
    order = sorted(range(len(options)), key=lambda i: -options[i].probability)
    if request.rank > 1 and position == 0:
        if request.rank > len(order):
            raise EngineError(f"The script has {len(order)} continuations; none has rank {request.rank}.")
        return order[request.rank - 1]
    if request.temperature == 0:
        return order[0]
    total = sum(option.probability for option in options)
    weights, before = [], 0.0
    for i in order:
        share = options[i].probability / total
        weights.append(share ** (1 / request.temperature) if before < request.top_p else 0.0)
        before += share
    return random.Random(f"{request.seed} {position}").choices(order, weights=weights)[0]


def _trace(options: Sequence[Scripted], chosen: int, top_k: int) -> list[Measured]:
    """What is measured of each token.

    A token that is not in the script counts among the top k with a probability of 1e-9.
    """
    total = sum(option.probability for option in options)
    shares = sorted((option.probability / total for option in options), reverse=True)
    entropy = -sum(p * math.log(p) for p in shares)
    varentropy = sum(p * math.log(p) ** 2 for p in shares) - entropy**2
    taken = math.log(options[chosen].probability / total)
    margin = shares[0] - (shares[1] if len(shares) > 1 else 0.0)
    count = len(_tokens(options[chosen]))
    rows = [Measured(entropy, taken, math.log(shares[0]), margin, max(0.0, varentropy))]
    rows += [Measured(0.0, 0.0, 0.0, 1.0, 0.0)] * (count - 1)
    if top_k:
        known = [math.log(max(p, _UNSCRIPTED)) for p in shares[:top_k]]
        unscripted = math.log(_UNSCRIPTED)
        first = (sum(known) + unscripted * (top_k - len(known))) / top_k
        later = unscripted * (top_k - 1) / top_k
        rows = [row._replace(top_k_logprob=later if i else first) for i, row in enumerate(rows)]
    given = options[chosen].entropy
    if given is None:
        return rows
    entropies = [float(given)] * count if isinstance(given, (int, float)) else list(given)
    if len(entropies) != count:
        raise ConfigError(f"{options[chosen]!r} has {len(entropies)} entropies for {count} tokens. Give one for each.")
    return [row._replace(entropy=h) for h, row in zip(entropies, rows, strict=True)]
