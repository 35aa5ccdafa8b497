"""What one engine measures of given tokens, in a process of its own: asked by JSON on its stdin, answers with JSON.

Asked: ``model`` (`ModelSettings`), ``prompts`` and ``tokens`` (ids, a list for each prompt). Told: ``lower`` and ``upper``
(nats, a list for each prompt): bounds of every token's entropy, equal where the engine's figure is exact.
"""

from __future__ import annotations

import json
import os
import sys

from caspo.engines.base import Request
from caspo.engines.opening import ModelSettings, open_engine


def main() -> None:
    """Token by token, all prompts at once: each continues what was kept of the one before."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever an engine prints is no answer
    asked = json.load(sys.stdin)
    engine = open_engine(ModelSettings.model_validate(asked["model"]))
    lower: list[list[float]] = [[] for _ in asked["prompts"]]
    upper: list[list[float]] = [[] for _ in asked["prompts"]]
    for t in range(max(map(len, asked["tokens"]))):
        places = [i for i, tokens in enumerate(asked["tokens"]) if t < len(tokens)]
        prefixes = [tuple(asked["prompts"][i]) + tuple(asked["tokens"][i][:t]) for i in places]
        found = engine.generate([Request(ids, 0, 1, temperature=0, keep=True) for ids in prefixes])
        for i, one in zip(places, found, strict=True):
            trace = one.trace
            lower[i].append(float(trace.entropy[0]))
            upper[i].append(float(trace.entropy[0] if trace.entropy_upper is None else trace.entropy_upper[0]))
    json.dump({"lower": lower, "upper": upper}, out)
    out.flush()


if __name__ == "__main__":
    main()
