"""How many threads, from what the system says of cores and quotas; and that what somebody chose stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from caspo.core import threads


def system(root: Path, cgroup: str, files: dict[str, str], siblings: dict[int, str] | None = None) -> Path:
    """Files of a system below ``root``: the control group of this process, and what stands in the groups."""
    told = {"proc/self/cgroup": cgroup, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}
    told |= {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": text for cpu, text in (siblings or {}).items()
    }
    for name, text in told.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 64 CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "250000 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, 64),
        ("0::/", {}, 64),
        ("", {}, 64),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
        ("0::/docker/of/the/host", {"cpu.max": "400000 100000"}, 4),
        ("2:memory:/\n4:cpu,cpuacct:/x\n0::/", {"cpu/x/cpu.cfs_quota_us": "600000", "cpu/x/cpu.cfs_period_us": "100000"}, 6),
        ("4:cpu:/of/the/host", {"cpu/cpu.cfs_quota_us": "500000", "cpu/cpu.cfs_period_us": "100000"}, 5),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("0::/", {"cpu.max": "nonsense"}, 64),
        ("0::/", {"cpu.max": "100000 0"}, 64),
    ],
)
def test_a_container_gets_what_it_may_use(tmp_path: Path, cgroup: str, files: dict[str, str], expected: int) -> None:
    """Two CPUs of a host with 64: two threads, not 64."""
    assert threads.cores(system(tmp_path, cgroup, files)) == expected


def test_hardware_threads_of_a_core_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those of its affinity only."""
    siblings = {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}
    root = system(tmp_path, "0::/", {}, siblings)
    for allowed, expected in ((range(8), 4), ((0, 4), 1), ((0, 1, 5), 2), ((9,), 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, allowed=allowed: set(allowed), raising=False)
        assert threads.cores(root) == expected


@given(st.text(), st.text())
def test_whatever_the_files_say_there_is_a_core(tmp_path_factory: pytest.TempPathFactory, cgroup: str, quota: str) -> None:
    root = tmp_path_factory.mktemp("system")
    for name, text in (("proc/self/cgroup", cgroup), ("sys/fs/cgroup/cpu.max", quota)):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert threads.cores(root) >= 1


def test_never_more_than_torch_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """By OMP_NUM_THREADS or by the program around us; a number that is asked for is taken."""
    before = torch.get_num_threads()
    try:
        for told, cores, asked, expected in ((1, 8, None, 1), (3, 2, None, 2), (1, 8, 2, 2), (2, 1, 2, 2)):
            torch.set_num_threads(told)
            monkeypatch.setattr(threads, "cores", lambda cores=cores: cores)
            assert threads.use_threads(asked) == torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def waiting(*, before: str = "", **variables: str) -> str:
    """How a new process waits, ``before`` being what it did before."""
    script = (
        f"import os\n{before}\nfrom caspo.core.threads import patient\npatient()\nprint(os.environ.get('OMP_WAIT_POLICY'))"
    )
    plain = {key: value for key, value in os.environ.items() if key not in threads._WAITING}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**plain, **variables}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_threads_sleep_unless_somebody_chose() -> None:
    assert waiting() == "PASSIVE"
    assert waiting(OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"
    assert waiting(GOMP_SPINCOUNT="1000") == "None"
    assert waiting(KMP_BLOCKTIME="0") == "None"
    assert waiting(before="import torch") == "None", "too late, and children are none of our business"


def test_a_model_is_opened_with_threads_that_sleep() -> None:
    """Through the front door, where no command line came before."""
    before = (
        "import caspo, sys\nassert 'OMP_WAIT_POLICY' not in os.environ\ncaspo.load('stories-tiny')\n"
        "assert 'torch' in sys.modules"
    )
    assert waiting(before=before, OMP_NUM_THREADS="1") == "PASSIVE"
