"""`caspo serve`: the OpenAI API, with CaT behind it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caspo.cli.options import (
    BaseOption,
    DeviceOption,
    DtypeOption,
    EngineOption,
    MethodOption,
    MethodSettings,
    ModelOption,
    StepsOption,
    ThreadsOption,
    TokenizerOption,
    UrlOption,
)

if TYPE_CHECKING:
    from caspo.serve.scheduler import Scheduler
    from caspo.serve.settings import ServeSettings

__all__ = ["serve"]

_KEYS = "CASPO_API_KEYS"


def serve(
    settings: MethodSettings = None,
    model: ModelOption = "smollm2-135m",
    base: BaseOption = None,
    engine: EngineOption = None,
    url: UrlOption = None,
    tokenizer: TokenizerOption = None,
    served_name: Annotated[str | None, typer.Option(help="What clients call it; the model's name by default.")] = None,
    method: MethodOption = "cat",
    thresholds: Annotated[
        Path | None, typer.Option(help="File of `caspo calibrate`: CaT with its settings, which clients may not change.")
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help="System message of conversations that have none; '' for none.")
    ] = None,
    steps: StepsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    host: Annotated[str, typer.Option(help="Address; other than loopback only with API keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    api_keys: Annotated[
        Path | None, typer.Option(help=f"File of the API keys, one a line; or the variable {_KEYS}, with commas.")
    ] = None,
    cors: Annotated[list[str] | None, typer.Option(help="Origin whose pages may call; may be repeated.")] = None,
    active: Annotated[int, typer.Option(min=1, help="Searches under way at once.")] = 128,
    waiting: Annotated[int, typer.Option(min=0, help="Searches that may wait; more are refused with 429.")] = 512,
    max_body: Annotated[int, typer.Option(help="Bytes of a request, at most.")] = 1 << 20,
    max_prompt: Annotated[int | None, typer.Option(help="Tokens of a prompt, at most.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of one path, at most.")] = 4096,
    max_budget: Annotated[int, typer.Option(help="Tokens generated for one request, at most.")] = 32768,
    max_seconds: Annotated[float, typer.Option(help="Deadline of a request, at most.")] = 600.0,
    grace: Annotated[float, typer.Option(help="Seconds that requests under way have at shutdown.")] = 30.0,
) -> None:
    """Serve a model behind the OpenAI API, with CaT (or another method) and the confidence of each step."""
    import logging

    from caspo.cli.solve import choose
    from caspo.engines.prompts import INSTRUCTION

    asked_of = {"engine": engine, "base": base, "dtype": dtype, "instruction": instruction, "steps": steps}
    chosen, told = choose(thresholds, method, settings, model, **asked_of)
    configured = _settings(
        host=host,
        port=port,
        model=served_name or model,
        method=method,
        settings=chosen.settings.model_dump(exclude_unset=True),
        fixed=thresholds is not None,
        instruction=told.get("instruction", INSTRUCTION),
        keys=_keys(api_keys),
        cors=tuple(cors or ()),
        max_body=max_body,
        max_prompt=max_prompt,
        max_tokens=max_tokens,
        max_budget=max_budget,
        max_seconds=max_seconds,
        grace=grace,
    )
    from caspo.serve.server import listening

    bound = listening(configured)  # before the model is loaded: an address that is taken is told at once
    from caspo.answers import same_answer
    from caspo.engines.opening import model_settings, open_serving
    from caspo.serve.scheduler import Scheduler
    from caspo.serve.thread import EngineThread

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    asked = model_settings(model, url=url, tokenizer=tokenizer, device=device, threads=threads, **told)
    thread = EngineThread()
    opened = thread.submit(lambda: open_serving(asked)).result()
    same_answer("1/2", "0.5")  # loads what compares answers: seconds that the first client would wait
    scheduler = Scheduler(opened, active=active, waiting=waiting, thread=thread)
    _listen(configured, opened, scheduler, bound, active + waiting)


def _listen(settings: ServeSettings, engine: Any, scheduler: Scheduler, bound: Any, most_jobs: int) -> None:
    """Serve until a signal."""
    from caspo.serve.app import create_app
    from caspo.serve.server import Server

    app = create_app(scheduler, engine, settings)
    scheduler.start()
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(
        f"{settings.model} at http://{host}:{bound.getsockname()[1]}  (a page at /; for clients of OpenAI: "
        f"base_url http://{host}:{bound.getsockname()[1]}/v1, model {settings.model!r}; Ctrl-C ends it)",
        flush=True,
    )
    Server(app, scheduler, settings, most_jobs).run([bound])


def _settings(**fields: Any) -> ServeSettings:
    from pydantic import ValidationError

    from caspo.core.errors import ConfigError
    from caspo.serve.settings import ServeSettings

    try:
        return ServeSettings(**fields)
    except ValidationError as error:
        # Never the input: it may be a key.
        told = "; ".join(
            ": ".join([*[".".join(map(str, p["loc"]))][: bool(p["loc"])], p["msg"].removeprefix("Value error, ")])
            for p in error.errors(include_input=False, include_url=False)
        )
        raise ConfigError(f"The server cannot be set so: {told}.") from None


def _keys(file: Path | None) -> tuple[str, ...]:
    """The API keys: of the file, else of the variable."""
    import os
    import sys

    from caspo.core.errors import ConfigError

    if file is None:
        return tuple(key.strip() for key in os.environ.get(_KEYS, "").split(",") if key.strip())
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        readable = file.stat().st_mode & 0o004
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the API keys in {file}: {error}. Check the path.") from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.strip().startswith("#"))
    if not keys:
        raise ConfigError(f"{file} holds no API key. Write one a line, or leave out --api-keys.")
    if readable:
        print(f"Warning: every user of this machine can read {file}. Take that away: chmod 600 {file}", file=sys.stderr)
    return keys
