"""The processes behind `sandbox`: each gives up its rights, then runs a program or its tests. Needs nothing of caspo.

Usage: ``python -I sandbox_child.py REQUEST_FD RESULT_FD``; a request is read from REQUEST_FD to its end, JSON. By its
``role`` the process

- runs a program as a script (``script``), then ends as Python ends: threads are waited for, exit handlers run. Before
  that, its mark is written to RESULT_FD, or the reason why it did not come to its last line;
- loads a program and answers calls of what it defines (``program``): see `sandbox_exchange`. It reports nothing;
- runs the tests of such a program (``tests``), which stands in another process, and reports as a script does.
"""

import json
import os
import sys
import types

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - no more imports than needed
import sandbox_lock  # type: ignore[import-not-found]


def _module(name: str) -> "dict[str, object]":
    """The names of a new module, the one that the classes of a program find themselves in."""
    module = sys.modules[name] = types.ModuleType(name)
    return module.__dict__


def _execute(sources: "list[str]", names: "dict[str, object]") -> "str":
    """Run sources one after the other in one module; why they did not come to their last line, empty if they did.

    Each is compiled by itself: ``from __future__`` may open any of them.
    """
    try:
        for source in sources:
            exec(compile(source, "program.py", "exec", dont_inherit=True), names)
    except SystemExit as left:
        return f"exit: {int(left.code) if isinstance(left.code, bool) else left.code}"
    except BaseException as error:
        return f"error: {type(error).__name__}: {str(error)[:500]}"
    return ""


def main() -> None:
    """Read the request, lock the door, do what is asked."""
    sandbox_lock.hide(True)  # the tests' process holds what the program must not see
    with os.fdopen(int(sys.argv[1]), encoding="utf-8") as file:
        request = json.load(file)
    result = int(sys.argv[2])
    sources, role = request["sources"], request["role"]
    if role != "script":
        import sandbox_exchange  # type: ignore[import-not-found]
    del sys.path[0]
    try:
        sandbox_lock.lock(request["limits"], request["folder"], request["landlock"])
    except (OSError, ValueError, KeyError) as error:
        os.write(result, b"refused: " + str(error).encode())
        os._exit(1)
    os.write(result, b"locked: ")
    sys.argv[:] = ["program.py"]
    names = _module(request["module"])
    if role == "script":
        mark = request["mark"]
        reason = _execute(sources, names)
        os.write(result, (reason or mark).encode(errors="replace"))
        if reason.startswith("error: "):
            os._exit(1)
        return
    exchange = sandbox_exchange.Exchange(*request["pipes"])
    if role == "program":
        os.close(result)
        sandbox_exchange.answer_calls(exchange, lambda: _execute(sources, names), lambda: eval(request["entry"], names))
    else:
        try:
            names["candidate"] = sandbox_exchange.load(exchange)
            reason = _execute(sources, names)
        except sandbox_exchange.Refused as problem:
            reason = str(problem)
        os.write(result, (reason or request["mark"]).encode(errors="replace"))
    os._exit(0)


if __name__ == "__main__":
    main()
