"""Calls between the tests of a program and the program, which stand in two processes and trust each other in nothing.

The tests call; the program computes; values come back as plain data (JSON), are built anew on the side of the tests, and
are compared there. So a program sees the arguments of its tests and never what is expected of it, and it cannot change
how values are compared.

Values of Python's own types, of `collections`, `decimal`, `fractions` and `datetime` and of numpy arrive as what they are.
A subclass of such a type arrives as that type, a number of another library as the number of Python's that it stands for.
Anything else stays in the program's process and arrives as a `Remote`: it can be called, iterated, indexed and its
attributes read, and it is equal to nothing but itself. What tests do to a list, dict or set by a call is done to theirs too.

Not here: arguments that are not plain (functions, objects of own classes); `Unplain` says so, and `programs` runs such
tests within the program's process.
"""

from __future__ import annotations

import builtins
import datetime
import json
import numbers
import operator
import os
import struct
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

__all__ = ["Exchange", "Refused", "Remote", "Unplain", "answer_calls", "load"]

MAX_MESSAGE = 1 << 28
"""Bytes; what a program sends is read into memory, which is limited."""

_PARTS: dict[Any, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset", deque: "deque"}
_PAIRS: dict[Any, str] = {dict: "dict", OrderedDict: "OrderedDict", Counter: "Counter"}
_SPELT: dict[Any, Callable[[Any], Any]] = {
    int: hex,
    complex: lambda x: [x.real, x.imag],
    bytes: bytes.hex,
    bytearray: bytearray.hex,
    range: lambda x: [hex(x.start), hex(x.stop), hex(x.step)],
    Decimal: str,
    Fraction: lambda x: [hex(x.numerator), hex(x.denominator)],
    datetime.date: datetime.date.isoformat,
    datetime.time: datetime.time.isoformat,
    datetime.datetime: datetime.datetime.isoformat,
    type(...): lambda x: None,
    datetime.timedelta: lambda x: [x.days, x.seconds, x.microseconds],
}
_READ: dict[str, Callable[[Any], Any]] = {name: kind for kinds in (_PARTS, _PAIRS) for kind, name in kinds.items()}
_READ |= {
    "int": lambda x: int(x, 16),
    "complex": lambda x: complex(*x),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "range": lambda x: range(*(int(part, 16) for part in x)),
    "Decimal": Decimal,
    "Fraction": lambda x: Fraction(int(x[0], 16), int(x[1], 16)),
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "datetime": datetime.datetime.fromisoformat,
    "timedelta": lambda x: datetime.timedelta(*x),
    "ellipsis": lambda x: ...,
    "array": lambda x: _array(*x),
    "scalar": lambda x: _array(*x)[()],
}
_BASES: dict[Any, Callable[[Any], Any]] = {
    int: int.__index__,
    float: float.__float__,
    str: str.__str__,
    bytes: lambda x: bytes(memoryview(x)),
    tuple: lambda x: tuple(tuple.__iter__(x)),
    list: lambda x: list(list.__iter__(x)),
    set: lambda x: set(set.__iter__(x)),
    frozenset: lambda x: frozenset(frozenset.__iter__(x)),
    deque: lambda x: deque(deque.__iter__(x)),
    Counter: lambda x: Counter(dict(dict.items(x))),
    OrderedDict: lambda x: OrderedDict(OrderedDict.items(x)),
    dict: lambda x: dict(dict.items(x)),
    type({}.keys()): set,
    numbers.Integral: int,
    numbers.Rational: lambda x: Fraction(int(x.numerator), int(x.denominator)),
    numbers.Real: float,
}
_ANSWERS: dict[str, Callable[..., Any]] = {
    "call": lambda value, *args, **names: value(*args, **names),
    "getattr": getattr,
    "getitem": operator.getitem,
    "contains": operator.contains,
    "len": len,
    "bool": bool,
    "iter": iter,
    "next": next,
    "str": str,
    "repr": repr,
}


_MUTABLE = (list, dict, set, deque, bytearray, OrderedDict, Counter)


class Unplain(BaseException):
    """An argument cannot be sent to another process."""


class Refused(BaseException):
    """The program could not be loaded, or has ended; the reason, as a script reports it."""


class Exchange:
    """Messages over two pipes."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._incoming, self._outgoing = incoming, outgoing

    def send(self, message: object) -> None:
        """Write a message."""
        data = json.dumps(message).encode()
        data = struct.pack("<Q", len(data)) + data
        while data:
            data = data[os.write(self._outgoing, data) :]

    def receive(self) -> Any:
        """Wait for a message.

        Raises:
            EOFError: the other process has ended, or wants to fill this one's memory.
        """
        (length,) = struct.unpack("<Q", self._read(8))
        if length > MAX_MESSAGE:
            raise EOFError
        return json.loads(self._read(length))

    def _read(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            part = os.read(self._incoming, min(1 << 16, length - len(parts)))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)


def answer_calls(exchange: Exchange, run: Callable[[], str], entry: Callable[[], Any]) -> None:
    """The program's side: load it, say why it did not load (empty if it did), then answer until nobody asks any more."""
    exchange.receive()  # the tests' process has locked itself up; until then the program could look into it
    kept: list[Any] = []
    reason = run()
    if not reason:
        try:
            kept.append(entry())
        except BaseException as error:
            reason = f"error: {type(error).__name__}: {str(error)[:500]}"
    exchange.send(reason)
    while not reason:
        operation, sent, named = exchange.receive()
        try:
            values = [decode(value, kept.__getitem__) for value in sent]
            names = {name: decode(value, kept.__getitem__) for name, value in named.items()}
            value = encode(_ANSWERS[operation](*values, **names), kept)
            now = {i: encode(x, kept) for i, x in enumerate(values) if type(x) in _MUTABLE}
            reply = ["value", value, [[i, state] for i, state in now.items() if state != sent[i]]]
        except BaseException as error:
            known = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
            reply = ["raised", known, str(error)[:500]]
        exchange.send(reply)


class Remote:
    """A value that stays with the program: what is done to it is done there, and only `Remote`s are equal to itself."""

    def __init__(self, ask: Callable[..., Any], place: int) -> None:
        self._ask, self._place = ask, place

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("getattr", self, name)

    def __call__(self, *values: Any, **named: Any) -> Any:
        return self._ask("call", self, *values, **named)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("getitem", self, key)

    def __contains__(self, value: Any) -> bool:
        return bool(self._ask("contains", self, value))

    def __len__(self) -> int:
        return int(self._ask("len", self))

    def __bool__(self) -> bool:
        return bool(self._ask("bool", self))

    def __iter__(self) -> Any:
        return self._ask("iter", self)

    def __next__(self) -> Any:
        return self._ask("next", self)

    def __str__(self) -> str:
        return str(self._ask("str", self))

    def __repr__(self) -> str:
        return str(self._ask("repr", self))


def load(exchange: Exchange) -> Remote:
    """The tests' side: what the program defines, once it is loaded.

    Raises:
        Refused: it did not load.
    """

    def received() -> Any:
        try:
            return exchange.receive()
        except EOFError:
            raise Refused("exit: the program ended while its tests ran") from None

    def found(place: int) -> Remote:
        return Remote(ask, place)

    def ask(operation: str, *values: Any, **named: Any) -> Any:
        exchange.send([operation, [encode(x, None) for x in values], {name: encode(x, None) for name, x in named.items()}])
        kind, *rest = received()
        if kind != "value":
            raise _exception(*rest)
        value, changed = rest
        for place, state in changed:
            _become(values[place], decode(state, found))
        return decode(value, found)

    exchange.send("load")
    if reason := received():
        raise Refused(f"not loaded: {str(reason)[:600]}")
    return Remote(ask, 0)


def _exception(names: list[str], text: str) -> Exception:
    """The nearest exception of Python's own."""
    for name in names:
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(text)
            except TypeError:  # UnicodeDecodeError wants more
                continue
    return RuntimeError(text)


def _become(value: Any, state: Any) -> None:
    """What the program did to an argument."""
    if isinstance(value, (list, bytearray)):
        value[:] = state
    elif isinstance(value, deque):
        value.clear()
        value.extend(state)
    else:
        value.clear()
        value.update(state)


_SPELT[Remote] = lambda x: x._place


def encode(value: Any, kept: list[Any] | None) -> Any:
    """A value as JSON holds it. What is not plain is ``kept``, to be asked for; without a place to keep it, it is refused.

    >>> encode((1, [2.5, "x"]), None)
    ['tuple', [1, ['list', [2.5, 'x']]]]
    """
    kind = type(value)
    if value is None or kind in (bool, float, str) or (kind is int and abs(value) < 1 << 53):
        return value
    if (spelt := _spelt(value, kind, kept)) is not None:
        return spelt
    if kept is None:
        raise Unplain(f"an argument of a test is of type {kind.__name__}")
    for base, plain in _BASES.items():
        if isinstance(value, base):
            return encode(plain(value), kept)
    kept.append(value)
    return ["Remote", len(kept) - 1]


def _spelt(value: Any, kind: Any, kept: list[Any] | None) -> Any:
    """The name of a known type, and what makes the value of it; None for others."""
    if kind in _PARTS:
        return [_PARTS[kind], [encode(part, kept) for part in value]]
    if kind in _PAIRS:
        return [_PAIRS[kind], ["list", [["tuple", [encode(key, kept), encode(x, kept)]] for key, x in value.items()]]]
    if kind in _SPELT:
        return [kind.__name__, _SPELT[kind](value)]
    if kind.__module__ != "numpy" or not hasattr(value, "dtype"):
        return None
    if value.dtype.hasobject:
        return ["array", ["O", list(value.shape), [encode(part, kept) for part in value.ravel().tolist()]]]
    return ["array" if kind.__name__ == "ndarray" else "scalar", [value.dtype.str, list(value.shape), value.tobytes().hex()]]


def decode(value: Any, found: Callable[[int], Any]) -> Any:
    """The value of what `encode` made; ``found`` gives what was kept."""
    if not isinstance(value, list):
        return value
    name, inner = value
    if name == "Remote":
        return found(inner)
    if name in _PARTS.values():
        return _READ[name](decode(part, found) for part in inner)
    if name in _PAIRS.values():
        return _READ[name](dict(decode(inner, found)))
    if name == "array" and inner[0] == "O":
        inner = ["O", inner[1], [decode(part, found) for part in inner[2]]]
    return _READ[name](inner)


def _array(dtype: str, shape: list[int], data: Any) -> Any:
    import numpy as np

    if dtype == "O":
        made = np.empty(len(data), dtype=object)
        made[:] = data
        return made.reshape(shape)
    return np.frombuffer(bytes.fromhex(data), dtype=np.dtype(dtype)).reshape(shape).copy()
