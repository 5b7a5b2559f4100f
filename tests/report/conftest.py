"""One small stage planned, and one step of a real daemon, for all tests of the report."""

import pytest

from tests.report.planned import Planned
from tests.report.told import Told


@pytest.fixture(scope="package")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    return Planned(tmp_path_factory.mktemp("planned"))


@pytest.fixture(scope="package")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return Told(tmp_path_factory.mktemp("d"))
