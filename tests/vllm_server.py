"""vLLM's real server (`make vllm`: its CPU build, in a venv of its own) with a model folder, for the tests.

It runs in processes of its own, so that it can be killed.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

__all__ = ["CONTEXT", "VLLM", "VllmServer", "environment"]

CONTEXT = 1024
"""Tokens that a request may have."""
BLOCK = 32
"""Tokens of a block: prefixes are shared in whole ones."""

_PATIENCE = 900
"""Seconds that it may take to start: a busy machine is no failure."""

VLLM = Path(os.environ.get("CASPO_VLLM_PYTHON", Path(__file__).parent.parent / ".venv-vllm" / "bin" / "python"))
"""The Python that has vLLM."""


def environment() -> dict[str, str]:
    """What vLLM is told on a machine with two busy cores: one thread, wherever it likes, and a GiB of keys and values."""
    ours = {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING",
    }  # fmt: skip
    return os.environ | ours


class VllmServer:
    """The server, while it lives. It answers when the constructor returns."""

    def __init__(self, model: Path, name: str, *options: str, dtype: str = "float32") -> None:
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        # `vllm serve` looks for a distribution of the name vllm, which the CPU build is not.
        self._command = [
            str(VLLM), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", name,
            "--host", "127.0.0.1", "--port", str(self.port), "--dtype", dtype, "--enforce-eager",
            "--max-model-len", str(CONTEXT), "--max-num-seqs", "32", "--block-size", str(BLOCK), *options,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self.start()

    def start(self) -> None:
        """Start it (again, on the port that it had)."""
        self._process = subprocess.Popen(
            self._command, env=environment(), stdout=self._log, stderr=self._log, start_new_session=True
        )
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            try:
                self.get("/health")
            except OSError:
                if self._process.poll() is not None:
                    raise AssertionError(f"the server ended at its start: {self.log[-2000:]}") from None
                time.sleep(0.2)
            else:
                return
        self.kill()
        raise AssertionError(f"the server did not start within {_PATIENCE} s: {self.log[-2000:]}")

    @property
    def log(self) -> str:
        """What it has said."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def kill(self) -> None:
        """End it and its workers in the middle of whatever they do."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def get(self, path: str) -> str:
        """One of its pages."""
        with urllib.request.urlopen(self.url + path, timeout=5) as response:
            return str(response.read().decode())

    def metric(self, name: str) -> float:
        """One of its figures (``vllm:num_requests_running``, ...), summed over its engines."""
        found = re.findall(rf"^{re.escape(name)}(?:_total)?{{[^}}]*}} (\S+)$", self.get("/metrics"), re.MULTILINE)
        assert found, name
        return sum(map(float, found))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
