"""Training on two nodes, joined by a leader and a follower, through whatever happens between them.

The nodes are network namespaces: daemons talk over one cable with mutual TLS and a token, ranks
over another with gloo, and each rank talks to the daemon of its own node only.
"""

from collections import Counter
from pathlib import Path

import pytest

from foremoe.training.micro_step import MicroStepRecord
from tests.processes import run_ranks
from tests.runtime.certificates import Authority, needs_openssl
from tests.runtime.namespaces import CONTROL, two_machines, why_not
from tests.runtime.nodes import Nodes
from tests.training.daemon_workers import MINI_BATCHES_PER_STEP
from tests.training.dense import Case
from tests.training.node_workers import CALM, RANKS_PER_NODE, STEPS, OnNodes, train_on_nodes
from tests.training.test_same_result import assert_same

LOST = {"runtime lost", "leader lost", "no plan in time", "another rank holds no such plan"}


@needs_openssl
@pytest.mark.timeout(400)
def test_training_on_two_nodes_survives_all_that_joins_them(tmp_path: Path) -> None:
    if why := why_not():
        pytest.skip(why)
    case = Case(seed=41, ranks=4, mini_batches=MINI_BATCHES_PER_STEP * len(STEPS))
    with two_machines() as machines:
        address = machines.address(0, CONTROL)
        authority = Authority(tmp_path / "authority")
        nodes = Nodes.create(tmp_path, authority, f"IP:{address}", host=address)
        with (
            nodes.leader(prefix=machines.prefix(0)) as leader,
            nodes.follower(prefix=machines.prefix(1)) as follower,
        ):
            pids = {"leader": leader.process.pid, "follower": follower.process.pid}
            results = run_ranks(
                train_on_nodes,
                4,
                case,
                nodes,
                machines,
                pids,
                timeout_seconds=300,
                prepare=OnNodes(machines, str(nodes.job.token_file)),
            )
    assert_same(case, results)
    for rank, result in enumerate(results):
        reasons = {
            step: Counter(map(reason, records)) for step, records in result["records"].items()
        }
        for step in STEPS:
            assert set(reasons[step]) <= {"", *LOST}, (rank, reasons)
        for step in CALM:
            assert set(reasons[step]) == {""}, (rank, reasons)
        assert "" not in reasons["link cut"], (rank, reasons)
        far = rank >= RANKS_PER_NODE
        expected = "leader lost" if far else "another rank holds no such plan"
        assert set(reasons["link still cut"]) == {expected}, (rank, reasons)
        lost = "leader lost" if far else "runtime lost"
        assert set(reasons["no leader"]) == {lost}, (rank, reasons)
        assert result["records"]["leader killed"][0].balanced  # what has arrived is still used


def reason(record: MicroStepRecord) -> str:
    return str(record.degraded_reason)
