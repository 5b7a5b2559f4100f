"""Rule 1: for any plan and any routing, the result is that of the dense model."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.processes import run_ranks
from tests.training.dense import Case, train_dense
from tests.training.workers import Way, recompute_twice, train, train_each
from tests.transfer.cuda import DEVICE, GPU

TOLERANCE = 1e-10


@pytest.mark.parametrize("ranks", [2, 4])
def test_outputs_and_gradients_equal_the_dense_model(ranks: int) -> None:
    case = Case(seed=ranks, ranks=ranks)
    results = run_ranks(train, ranks, case)
    assert_same(case, results)
    assert all(record.balanced for result in results for record in result["records"])
    assert all(result["reports"] == case.total for result in results)


def test_routing_that_differs_from_the_foresight_changes_nothing() -> None:
    case = Case(seed=11, ranks=2, foresight=0.4)
    assert_same(case, run_ranks(train, 2, case))


def test_a_rank_without_the_plan_degrades_all_alike() -> None:
    case = Case(seed=12, ranks=2)
    results = run_ranks(train, 2, case, Way(missing={1: {0, 2}}))
    assert_same(case, results)
    for result in results:
        assert [record.balanced for record in result["records"]] == [
            index not in (0, 2) for index in range(case.total)
        ]
    reasons = [results[rank]["records"][0].degraded_reason for rank in range(2)]
    assert reasons == ["another rank holds no such plan", "no plan in time"]


@pytest.mark.parametrize("frames", [None, 2])
def test_replicas_whose_copies_would_be_late_are_dropped_alike(frames: int | None) -> None:
    """Rank 0's links turn out to be slow in the first mini-batch; from then on nobody waits."""
    case = Case(seed=15, ranks=3, experts=9, mini_batches=3)
    results = run_ranks(train, 3, case, Way(frames=frames, slow_seconds=0.1))
    assert_same(case, results)
    dropped = [[record.dropped_replicas for record in result["records"]] for result in results]
    assert dropped[0] == dropped[1] == dropped[2]
    first, *later = np.array(dropped[0]).reshape(case.mini_batches, -1)
    assert not first.any(), "nothing was measured yet"
    assert all(count.all() for count in later)
    records = results[0]["records"]
    assert all(record.balanced for record in records)
    reasons = ["" if not count else "replicas dropped" for count in dropped[0]]
    assert [record.degraded_reason.split(":")[0] for record in records] == reasons
    waited = np.array([record.exposed_seconds.sum() for record in records])
    waited = waited.reshape(case.mini_batches, -1).sum(axis=1)
    assert (waited[1:] < 0.5 * waited[0]).all(), waited


def test_a_second_forward_in_a_micro_step_gives_the_same() -> None:
    case = Case(seed=13, ranks=2)
    expected = train_dense(case)["outputs"]
    results = run_ranks(recompute_twice, 2, case)
    for index in range(case.micro_steps):
        for forward in range(2):
            actual = torch.cat([result[index][forward] for result in results])
            assert torch.allclose(actual, expected[index], rtol=0, atol=TOLERANCE)


KEPT = Case(seed=14, ranks=2, micro_steps=4)
WAYS = {
    "streaming": Way(frames=2),
    "streaming, checkpointed": Way(frames=2, checkpointed=True),
    "resident, checkpointed": Way(checkpointed=True),
    "streaming, another forward": Way(frames=2, twice=True),
    "resident, another forward": Way(twice=True),
    "resident, out of order, a plan missing": Way(order=(0, 2, 1, 3), missing={1: {3}}),
    "streaming, out of order, a plan missing": Way(frames=2, order=(0, 2, 1, 3), missing={1: {3}}),
    "resident, main_grad": Way(main_grad=True),
    "streaming, checksums": Way(frames=2, verify=True),
    "resident, checksums": Way(stay=True, verify=True),
    "resident, transports of CUDA": Way(as_on_cuda=True, verify=True),
    "streaming, transports of CUDA": Way(frames=2, as_on_cuda=True),
    "no room for the cache in its budget": Way(no_cache="budget"),
    "no room for the cache in the tmpfs": Way(no_cache="full"),
}


@pytest.fixture(scope="module")
def trained() -> dict[str, list[dict[str, Any]]]:
    """What each rank saw, by way; the same processes go all ways."""
    ranks = run_ranks(train_each, 2, KEPT, list(WAYS.values()))
    return {name: [rank[index] for rank in ranks] for index, name in enumerate(WAYS)}


@pytest.mark.parametrize("name", WAYS)
def test_however_replicas_are_kept_the_result_is_the_same(
    name: str, trained: dict[str, list[dict[str, Any]]]
) -> None:
    way, results = WAYS[name], trained[name]
    assert_same(KEPT, results)
    records = results[0]["records"]
    assert sum(not record.balanced for record in records) == sum(map(len, way.missing.values()))
    assert any(record.host_copies for record in records) == (not way.no_cache)


class TestOnGpu:
    pytestmark = GPU

    @pytest.mark.parametrize("frames", [None, 2])
    def test_two_ranks_on_one_device_give_the_same(self, frames: int | None) -> None:
        assert_same(KEPT, run_ranks(train, 2, KEPT, Way(frames=frames, device=str(DEVICE))))


def assert_same(case: Case, results: list[dict[str, Any]]) -> None:
    expected = train_dense(case)
    for index, output in enumerate(expected["outputs"]):
        actual = torch.cat([result["outputs"][index] for result in results])
        assert torch.allclose(actual, output, rtol=0, atol=TOLERANCE)
    for index, gradient in enumerate(expected["gradients"]):
        is_router = index % 3 == 0
        parts = [result["gradients"][index] for result in results]
        actual = parts[0] if is_router else torch.cat(parts)
        assert gradient.abs().max() > 1e-3
        assert torch.allclose(actual, gradient, rtol=0, atol=TOLERANCE)
