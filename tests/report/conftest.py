"""One small stage, planned once for all tests of the report."""

import pytest

from tests.report.planned import Planned


@pytest.fixture(scope="package")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    return Planned(tmp_path_factory.mktemp("planned"))
