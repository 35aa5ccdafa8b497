"""How many threads a model computes with, and how they wait for each other.

Threads of one computation meet many times for every token. Left to itself OpenMP has those that are early spin until the
last one comes; where another process has a core, they spin through its whole turn, and it through theirs. So they sleep
instead (`patient`). And there is no more of them than cores that this process may use (`cores`): torch counts those of its
affinity, but neither what a container may use of them nor that two hardware threads are one core.

The number does not follow the load of the moment: sums are rounded otherwise by another number of threads, and a run would
be another run whenever somebody else was busy when it began.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path, PurePosixPath

__all__ = ["cores", "patient", "use_threads"]

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables by which somebody chooses how OpenMP waits."""


def patient() -> None:
    """Have threads that wait for others sleep. It works until torch is loaded, and nothing that was chosen is changed."""
    if "torch" not in sys.modules and not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def use_threads(asked: int | None = None) -> int:
    """Compute with so many threads; how many they are. Without a number with one a core, or fewer where torch was told so
    (``OMP_NUM_THREADS``, `torch.set_num_threads`)."""
    import torch

    chosen = asked or min(torch.get_num_threads(), cores())
    if chosen != torch.get_num_threads():
        torch.set_num_threads(chosen)
    return chosen


def cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: those of its affinity, as far as the quota of its control group reaches; 1 at least.

    ``root`` is where the files of the system are.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    quota = _quota(root)
    physical = len({_core(root, cpu) for cpu in allowed})
    return max(1, physical if quota is None else min(physical, int(quota)))


def _core(root: Path, cpu: int) -> str:
    """What all hardware threads of a core have in common."""
    return _text(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)


def _quota(root: Path) -> float | None:
    """CPUs that the control group and those around it may use together, of either version; None without a limit.

    In a container its path may be that of the host; what limits it is at the top then.
    """
    found = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        home = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        for inside in (PurePosixPath(path), *PurePosixPath(path).parents):
            group = home / str(inside).lstrip("/")
            if controllers:
                told = [_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")]
            else:
                told = _text(group / "cpu.max").split()
            if len(told) == 2 and all(number.isdecimal() for number in told) and int(told[1]):
                found.append(int(told[0]) / int(told[1]))
    return min(found, default=None)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
