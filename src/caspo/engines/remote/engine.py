"""Engine `openai_compatible`: any server with OpenAI's ``/v1/completions`` that shows log-probabilities.

vLLM, SGLang, llama.cpp's server, llama-cpp-python's, or several of them side by side. Entropies are bounds from the most
probable tokens (`caspo.confidence.entropy_bounds`): a trace holds the lower one as its `entropy`, the upper one beside it;
of a server that shows the whole vocabulary (llama.cpp) they are exact. What the server can do is asked at start-up.

Where a server gives token ids, prompts are sent as ids and nothing is ever tokenised again. Where it gives none, every
piece of text gets a number of its own (from `FIRST_PIECE` on), prompts are sent as text, and trees are unfit for training.

Texts are made of the bytes of all their tokens, and so are characters made of several. The bytes of a token are those that
the server tells (llama.cpp), or the local tokenizer (`tokenizer`), or what the server's ``/detokenize`` tells of it among
others (vLLM). A server without ids tells no more than what such tokens come to together: the last of them has it all.

Not here: the chat API, which hides the prompt's tokens, and training.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from caspo.core.errors import ConfigError, DataError, EngineError
from caspo.engines.base import Completion, Message, OnDone, Request
from caspo.engines.pieces import Pieces
from caspo.engines.prompts import (
    INSTRUCTION,
    TODAY,
    Example,
    asking,
    begin_ids,
    beginning,
    chat_ids,
    refuse_halves,
    turn_ends,
)
from caspo.engines.reading import reading_of, shown_ids
from caspo.engines.remote.batch import RemoteBatch
from caspo.engines.remote.lost import Lost
from caspo.engines.remote.pool import Endpoint, Pool
from caspo.engines.remote.probe import Features, probe
from caspo.engines.remote.reply import BadReply, Entry
from caspo.engines.remote.settings import RemoteSettings
from caspo.engines.remote.stream import TopLists
from caspo.engines.remote.token_bytes import TokenBytes
from caspo.engines.retries import Passing
from caspo.engines.run import run
from caspo.records import FIRST_PIECE
from caspo.steps import Reading, text_of

__all__ = ["OpenAICompatibleEngine"]

log = logging.getLogger(__name__)

_ANY_LENGTH = 1 << 30

_FIRST_PROMPT = FIRST_PIECE + (1 << 29)
"""Where a server gives no ids, prompts have numbers from here on."""

_PROMPTS = 10_000
"""Prompts remembered then, the newest ones: many more than are solved at once, and memory stays bounded."""


class OpenAICompatibleEngine:
    """Continues prefixes on servers.

    Args:
        settings: where they are.
        name: the model's name there.
        instruction: what the prompt asks for, besides the question.
        examples: what it shows before the question, see `asking`.

    Raises:
        ConfigError: no server answers, or one cannot be used for this; the message says what it lacks.
    """

    def __init__(
        self,
        settings: RemoteSettings,
        name: str,
        instruction: str = INSTRUCTION,
        examples: Sequence[Example] = (),
        *,
        steps: str = "reasoning",
        thinking: Sequence[str] | None = None,
    ) -> None:
        if not settings.urls:
            raise ConfigError("The engine openai_compatible needs urls: where the servers are (--url, or model.urls).")
        self.name, self.instruction, self.settings, self.examples = name, instruction, settings, tuple(examples)
        self._steps, self._thinking = steps, thinking
        self.known = TopLists()
        self._bytes: dict[int, bytes] = {}
        self._silent: set[int] = set()
        """Tokens that the server shows no text of."""
        self._ends: set[int] = set()
        self._end_texts: set[bytes] = set()
        self._pieces: list[bytes] = []
        self._numbers: dict[bytes, int] = {}
        self._prompts: OrderedDict[int, str] = OrderedDict()
        self._next_prompt = _FIRST_PROMPT
        self._lock = threading.Lock()
        self._tokenizer = _tokenizer(settings.tokenizer) if settings.tokenizer else None
        self.pool = Pool(settings)
        try:
            self._set_up()
        except BaseException:
            self.pool.close()
            raise

    def _set_up(self) -> None:
        self._asked = self.pool.wait_for(self._first())
        self.pool.admit = self._admit
        found = self._asked
        size = self.settings.vocab_size or found.vocab_size or _vocab_size(self.settings.tokenizer, self._tokenizer)
        if size is None:
            raise ConfigError(
                f"The size of the vocabulary of {self.name} is unknown, and without it entropy has no upper bound: "
                f"{found.server} does not tell it. Set vocab_size, or tokenizer (--tokenizer: hub name or folder)."
            )
        self.features: Features = replace(
            found, ids=found.ids and (found.tokenizes or self._tokenizer is not None), vocab_size=size
        )
        self.vocab_size, self.k = size, min(self.settings.top_logprobs, found.top_logprobs, size)
        self.context_length = found.context_length or _ANY_LENGTH
        self.reading = self._reading()
        if self._tokenizer is not None:
            inside = shown_ids(self._tokenizer, self.reading) - {self._tokenizer.eos_token_id}
            self._ends |= turn_ends(self._tokenizer) - inside
            self._end_texts = {str(self._tokenizer.decode([token])).encode() for token in self._ends}
        self._bytes_of = self._token_bytes()
        self.lost = Lost(self.pool, self.features, size)
        log.info("%s", self.features.describe())
        if self.k < self.settings.top_logprobs and self.k < size:
            log.warning("%s shows %d most probable tokens, not %d", found.server, self.k, self.settings.top_logprobs)
        if not self.features.ids:
            log.warning("%s gives no token ids (or nothing tokenises): trees are unfit for training", found.server)

    def _reading(self) -> Reading:
        """How the model's text is read: by its template, where anybody here knows it."""
        template = self._server_template() if self.features.template else None
        if self._tokenizer is not None:
            template = self._tokenizer.chat_template
        return reading_of(template, steps=self._steps, thinking=self._thinking)

    def _server_template(self) -> str:
        """The template as llama.cpp tells it; the others keep theirs to themselves."""
        if self.features.server != "llama.cpp":
            return ""
        try:
            told = self.pool.wait_for(self.pool.ask("GET", "/props"))
        except EngineError:  # a server may be started without that page
            return ""
        return str(told.get("chat_template") or "") if isinstance(told, dict) else ""

    def _token_bytes(self) -> Callable[[int], bytes]:
        if self._tokenizer is None:
            return TokenBytes(lambda text: self._encoded(text, special=False), self._detokenized)
        return Pieces(self._tokenizer, shown_ids(self._tokenizer, self.reading)).__getitem__

    async def _first(self) -> Features:
        problems = []
        for endpoint in self.pool.endpoints:
            try:
                features = await probe(self.pool, endpoint, self.name, self.settings.top_logprobs)
            except Passing as error:
                problems.append(str(error))
                continue
            except BadReply as error:
                raise ConfigError(f"{endpoint.root} cannot be used: {error}.") from error
            endpoint.known = True
            return features
        raise ConfigError(
            f"No server of {self.name} answers ({'; '.join(problems)}). Start it, or check its URL (--url, model.urls)."
        )

    async def _admit(self, endpoint: Endpoint) -> None:
        """Whether an endpoint can take part: what its neighbours show, it must show too."""
        found, asked = await probe(self.pool, endpoint, self.name, self.settings.top_logprobs), self._asked
        same = ("model", "ids", "vocab_size", "greedy_raw", "sampled_raw", "extended")
        differing = [name for name in same if getattr(found, name) != getattr(asked, name)]
        if differing or found.top_logprobs < self.k:
            raise ConfigError(
                f"{endpoint.root} is not like {self.pool.endpoints[0].root}: they differ in "
                f"{', '.join(differing) or 'top_logprobs'}. Start both with the same model, version and options."
            )

    def close(self) -> None:
        """Give up what is under way, and the connections."""
        self.pool.close()

    def prompt(self, question: str) -> tuple[int, ...]:
        """Tokens of the prompt that asks ``question``, in the model's chat template if anyone knows it."""
        return self.chat(asking(question, self.instruction, self.examples))

    def chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Tokens of the prompt that asks for the assistant's next message.

        Raises:
            DataError: half of a character in a message, or the template cannot render these messages.
        """
        refuse_halves(messages)
        if self._tokenizer is not None:
            ids = chat_ids(self._tokenizer, messages)
            return ids if self.features.ids else self._prompt_number(str(self._tokenizer.decode(ids)))
        if not self.features.template:  # as `PLAIN_TEMPLATE` has it
            forms = {"user": "Question: {}\nAnswer:\n", "assistant": "{}\n\n"}
            shown = (forms[m["role"]].format(m["content"]) for m in messages if m["role"] in forms)
            return self.encode("".join(shown), begins=True)
        try:
            return self._rendered(list(messages))
        except EngineError as error:
            if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
                raise DataError(f"The model's chat template cannot render this conversation: {error}") from error
            joined = f"{messages[0]['content']}\n\n{messages[1]['content']}"
            return self.chat([{"role": "user", "content": joined}, *messages[2:]])

    def _rendered(self, messages: Sequence[Message]) -> tuple[int, ...]:
        if self.features.server == "llama.cpp":
            text = str(self._ask("/apply-template", {"messages": messages, "chat_template_kwargs": TODAY}, "prompt"))
            return self.encode(text, begins=True)
        body = {"model": self.name, "messages": messages, "add_generation_prompt": True, "chat_template_kwargs": TODAY}
        ids = tuple(int(token) for token in self._ask("/tokenize", body, "tokens"))
        return ids if self.features.ids else self._prompt_number(self._detokenized(ids))

    def encode(self, text: str, *, begins: bool = False) -> tuple[int, ...]:
        """Tokens of a text as it is; of one that ``begins`` a sequence, with BOS if the model knows texts with it."""
        if not self.features.ids:
            return self._prompt_number(text) if text else ()
        if self._tokenizer is not None:
            bare = tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
            return begin_ids(self._tokenizer, text) if begins else bare
        ids, first = self._encoded(text, special=False), self._bos if begins else ()
        return ids if ids[: len(first)] == first else (*first, *ids)

    def pieces(self, token_ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token; special tokens have none."""
        return [self._piece(token) for token in token_ids]

    def forget(self) -> None:
        """Forget what was seen; what the servers keep of prefixes is theirs."""
        self.pool.call(self.known.clear)

    def batch(self, most: int | None = None) -> RemoteBatch:
        """An empty batch of ``most`` requests at once (as many as the servers take at once by default)."""
        return RemoteBatch(self, most or self.settings.concurrency * len(self.pool.endpoints))

    def generate(self, requests: Sequence[Request], on_done: OnDone | None = None) -> list[Completion]:
        """Sample every request, and those that ``on_done`` adds; results in the order of their places.

        Raises:
            EngineError: a request was refused, or failed for longer than our patience.
        """
        return run(self.batch(), requests, on_done)

    # What a batch needs (`Side`).

    def number(self, entry: Entry, *, last: bool = False) -> int:
        """The id of a token: the server's, or one for its text; ``last``: it ended a text."""
        if not self.features.ids:
            return self._number_of(b"" if last else entry.piece or b"")[0]
        if entry.token is None:
            raise BadReply("the server sent a token without its id")
        if last:
            self._ends.add(entry.token)
            self._bytes[entry.token] = b""
        elif entry.piece and self._tokenizer is None:
            self._bytes.setdefault(entry.token, entry.piece)
        elif entry.piece is not None:
            self._silent.add(entry.token)
        return entry.token

    async def resolved(self, entry: Entry) -> int:
        """The id of a token of a list, which may have come as text only."""
        if entry.token is not None or not self.features.ids:
            return self.number(entry)
        text = (entry.piece or b"").decode(errors="replace")
        if self._tokenizer is not None:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = (await self.pool.ask("POST", "/tokenize", _tokenize(self.name, text, special=False)))["tokens"]
        if len(ids) != 1:
            raise EngineError(f"The server names the token {text!r} by its text only, and that is {len(ids)} tokens.")
        return int(ids[0])

    def ends(self, token: int | None, piece: bytes | None) -> bool:
        """Whether a token is known to end a text."""
        return token in self._ends or piece in self._end_texts

    def prompt_of(self, ids: Sequence[int]) -> str | list[int]:
        """What to send for a prefix."""
        return list(ids) if self.features.ids else text_of(self.pieces(ids))

    def _piece(self, token: int) -> bytes:
        if token >= _FIRST_PROMPT:
            return self._prompts[token].encode(errors="replace")
        if token >= FIRST_PIECE:
            return self._pieces[token - FIRST_PIECE]
        if token not in self._bytes:
            piece = self._bytes_of(token)
            if token in self._silent and self._tokenizer is None:  # special: it has a name, which is text only in a mark
                marks = [mark for pair in self.reading.thinking for mark in pair]
                piece = piece if any(piece.decode(errors="replace") in mark for mark in marks) else b""
            self._bytes[token] = piece
        return self._bytes[token]

    def _number_of(self, piece: bytes) -> tuple[int]:
        with self._lock:
            if piece not in self._numbers:
                self._numbers[piece] = FIRST_PIECE + len(self._pieces)
                self._pieces.append(piece)
            return (self._numbers[piece],)

    def _prompt_number(self, text: str) -> tuple[int]:
        """A number for the text of a prompt, as it is sent: servers put BOS before a text, also before one that has it."""
        first = "" if self._tokenizer is None else str(self._tokenizer.decode(beginning(self._tokenizer)))
        with self._lock:
            number, self._next_prompt = self._next_prompt, self._next_prompt + 1
            self._prompts[number] = text.removeprefix(first)
            if len(self._prompts) > _PROMPTS:
                self._prompts.popitem(last=False)
            return (number,)

    @cached_property
    def _bos(self) -> tuple[int, ...]:
        """What the server puts before every text."""
        bare, whole = (self._encoded("a", special=special) for special in (False, True))
        return whole[: len(whole) - len(bare)] if whole[len(whole) - len(bare) :] == bare else ()

    def _encoded(self, text: str, *, special: bool) -> tuple[int, ...]:
        found = self._ask("/tokenize", _tokenize(self.name, text, special=special), "tokens")
        return tuple(int(token) for token in found)

    def _detokenized(self, ids: Sequence[int]) -> str:
        if self._tokenizer is not None:
            return str(self._tokenizer.decode(ids, skip_special_tokens=True))
        body = {"model": self.name, "tokens": list(ids)}
        key = "content" if self.features.server == "llama.cpp" else "prompt"
        return str(self._ask("/detokenize", body, key))

    def _ask(self, path: str, body: dict[str, Any], key: str) -> Any:
        reply = self.pool.wait_for(self.pool.ask("POST", path, body))
        if not isinstance(reply, dict) or key not in reply:
            raise EngineError(f"{path} of {self.features.server} answered without {key!r}. Is it the server it was?")
        return reply[key]


def _tokenize(model: str, text: str, *, special: bool) -> dict[str, Any]:
    """A request to ``/tokenize`` in the words of llama.cpp and of vLLM; ``special``: add what begins every text."""
    llama = {"content": text, "add_special": special, "parse_special": True}
    return {"model": model, "prompt": text, "add_special_tokens": special, **llama}


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(f"The tokenizer {name!r} cannot be loaded ({str(error)[:200]}). Check model.tokenizer.") from error


def _vocab_size(name: str | None, tokenizer: Any) -> int | None:
    """Size of the output layer by the model's configuration; that of the tokenizer where there is none."""
    if name is None:
        return None
    from transformers import AutoConfig

    try:
        return int(AutoConfig.from_pretrained(name).get_text_config(decoder=True).vocab_size)
    except (OSError, ValueError, AttributeError):
        return len(tokenizer)
