"""What holds for all tests."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings

# A test's verdict must not depend on how busy the machine is; nor does any test measure time.
settings.register_profile("caspo", deadline=None)
settings.load_profile("caspo")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """All tests of a file go to one worker: what its fixtures train or sample is made once. Files in order of their names,
    as those with few tests take the longest."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)
