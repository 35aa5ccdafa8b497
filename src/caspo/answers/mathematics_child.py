"""The process behind `mathematics`: reads two formulas a line as JSON, answers "same" or "other". Run as a script.

It needs nothing of caspo. Memory is limited, as 9^{9^9} would fill it before the time is up; so is the time of a question
in case the parent, which keeps the limit, is gone.
"""

import json
import logging
import signal
import sys

MEMORY = 4 << 30
"""Bytes of address space."""
SECONDS = 30
"""After which a question whose parent is gone ends the process."""


def main() -> None:
    """Answer until the input ends."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # Windows, or a limit below ours: the time limit stays
        pass
    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable()
    # Formulas only, whole: by default, one that does not parse would be taken for the last number in it.
    how = {"extraction_config": [LatexExtractionConfig()], "fallback_mode": "no_fallback", "parsing_timeout": None}

    def same(a: str, b: str) -> bool:
        x, y = (parse(f"${text}$", **how) for text in (a, b))
        return bool(x and y and verify(x, y, timeout_seconds=None) and verify(y, x, timeout_seconds=None))

    for line in sys.stdin:
        alarm = getattr(signal, "alarm", None)
        if alarm is not None:
            alarm(SECONDS)
        try:
            answer = not line.strip() or same(*json.loads(line))
        except Exception:  # sympy raises anything; a formula that cannot be read is not the same formula
            answer = False
        print("same" if answer else "other", flush=True)
        if alarm is not None:
            alarm(0)


if __name__ == "__main__":
    main()
