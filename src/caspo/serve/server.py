"""Listening: uvicorn under our signals. After the first one requests are refused and those under way finish."""

from __future__ import annotations

import socket
import threading
from types import FrameType

import uvicorn

from caspo.core.errors import ConfigError
from caspo.serve.app import Application
from caspo.serve.scheduler import Scheduler
from caspo.serve.settings import ServeSettings

__all__ = ["Server", "listening"]

_SPARE = 256
"""Connections beyond those of jobs: idle ones, metrics, health."""


def listening(settings: ServeSettings) -> socket.socket:
    """The socket, bound.

    Raises:
        ConfigError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((settings.host, settings.port))
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"Cannot listen at {settings.host}:{settings.port}: {error.strerror or error}. Is another server there? Choose "
            "another --port (0: any that is free) or --host."
        ) from error
    return bound


class Server(uvicorn.Server):
    """Serves an application until a signal; the scheduler is stopped by then."""

    def __init__(self, app: Application, scheduler: Scheduler, settings: ServeSettings, most_jobs: int = 640) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,  # ours is without queries
                server_header=False,
                proxy_headers=False,
                lifespan="off",
                ws="none",
                limit_concurrency=most_jobs + _SPARE,
                timeout_keep_alive=15,
                timeout_graceful_shutdown=int(settings.grace) + 5,
            )
        )
        self._app, self._scheduler, self._grace = app, scheduler, settings.grace
        self._stopping = threading.Thread(target=scheduler.stop, args=(settings.grace,), name="caspo-stop", daemon=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends it in good order, the second one at once."""
        if self.should_exit:
            self.force_exit = True
            return
        self._app.close()
        self._stopping.start()  # waits for what is under way, then fails the rest, so that their clients are told
        self.should_exit = True
