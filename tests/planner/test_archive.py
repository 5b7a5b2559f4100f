"""Plans survive the file, and a bad file is refused with one line."""

from pathlib import Path

import numpy as np
import pytest

from foremoe.errors import InvalidInputError
from foremoe.planner.archive import load_plans, save_plans
from foremoe.planner.policies import foremoe
from tests.planner.problems import skewed_problem
from tests.planner.test_reference import assert_same

PROBLEM = skewed_problem(6, 4, 4, 16, 2)


def test_saved_plans_come_back_the_same(tmp_path: Path) -> None:
    plans = list(foremoe(PROBLEM))
    save_plans(tmp_path / "plans.npz", plans)
    assert_same(load_plans(tmp_path / "plans.npz"), plans)


def test_the_fields_and_shapes_are_those_documented(tmp_path: Path) -> None:
    save_plans(tmp_path / "plans.npz", list(foremoe(PROBLEM)))
    with np.load(tmp_path / "plans.npz", allow_pickle=False) as archive:
        assert {name: archive[name].shape for name in archive.files} == {
            "home": (3, 16),
            "load": (4, 3, 4, 16),
            "replica_expert": (4, 3, 4, 2),
            "replica_tokens": (4, 3, 4, 4, 2),
            "bound": (4, 3),
        }


def test_saving_nothing_or_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no plan"):
        save_plans(tmp_path / "plans.npz", [])
    with pytest.raises(InvalidInputError, match="cannot be written"):
        save_plans(tmp_path / "missing" / "plans.npz", list(foremoe(PROBLEM)))


def test_bad_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plans.npz"
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_plans(path)
    save_plans(path, list(foremoe(PROBLEM)))
    whole = path.read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(InvalidInputError, match="no npz archive"):
            load_plans(path)
    path.write_bytes(whole)
    with np.load(path) as archive:
        fields = dict(archive)
    for change, message in (
        ({"load": fields["load"][:1]}, "has shape"),
        ({"home": fields["home"].astype(np.int64)}, "home is int64"),
        ({"surplus": np.zeros(1)}, "expected the fields"),
    ):
        np.savez(path, **{**fields, **change})  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match=message):
            load_plans(path)
