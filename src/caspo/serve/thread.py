"""A thread that opens an engine and then drives it.

On a CPU both must be the same thread: PyTorch keeps a team of OpenMP threads for every thread that computes, and a second
team on the same cores made decoding up to three times slower (LOG.md).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["EngineThread"]

T = TypeVar("T")


class EngineThread:
    """Runs functions one after the other; ends with the process, whatever it does then."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="caspo-engine", daemon=True).start()

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Run a function there."""
        future: Future[T] = Future()
        self._asked.put((future, function))
        return future

    def _run(self) -> None:
        while True:
            future, function = self._asked.get()
            try:
                future.set_result(function())
            except BaseException as error:  # it is the caller's
                future.set_exception(error)
