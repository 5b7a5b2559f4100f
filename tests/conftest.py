"""Kernels are compiled before the first test's clock starts: a clean clone has no cache of them."""

import pytest

from foremoe.planner.policies import warm_up as warm_up_policies
from foremoe.runtime.daemon import warm_up as warm_up_daemon


def pytest_sessionstart(session: pytest.Session) -> None:
    if not session.config.option.collectonly:
        warm_up_policies()
        warm_up_daemon("foremoe")
