"""Engines turn prompts into steps with token traces; `models` finds and loads the models."""

from typing import TYPE_CHECKING

from caspo.core.lazy import export

if TYPE_CHECKING:
    from caspo.engines.base import Batch, Completion, Engine, Request, ServingEngine
    from caspo.engines.llama.engine import LlamaCppEngine
    from caspo.engines.local.engine import HFEngine
    from caspo.engines.memo import MemoEngine
    from caspo.engines.models import BUNDLED
    from caspo.engines.opening import ModelSettings, model_settings, open_engine, open_local, open_serving
    from caspo.engines.prompts import INSTRUCTION
    from caspo.engines.remote.engine import OpenAICompatibleEngine

__all__ = [
    "BUNDLED", "INSTRUCTION", "Batch", "Completion", "Engine", "HFEngine", "LlamaCppEngine", "MemoEngine",
    "ModelSettings", "OpenAICompatibleEngine", "Request", "ServingEngine", "model_settings", "open_engine",
    "open_local", "open_serving",
]  # fmt: skip

export(__name__)
