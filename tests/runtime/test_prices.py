"""A daemon with a model plans for the least time: replicas have to pay for their copies."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foremoe.client import RankClient
from foremoe.errors import InvalidInputError
from foremoe.planner.policies import foremoe
from foremoe.planner.preset import cluster_preset, cost_model, model_preset
from foremoe.planner.problem import StageProblem, Topology
from foremoe.vocabulary import Stage
from tests.runtime.daemon_process import DaemonProcess, run_foremoe
from tests.runtime.steps import GROUP, MICRO_STEPS, RANKS, attached

MODEL = "mixtral-8x7b"  # has as many experts a layer as the group


def test_plans_are_those_that_the_planner_makes_with_the_models_prices(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with (
        DaemonProcess(tmp_path, "--model", MODEL) as daemon,
        attached(daemon, "priced") as group,
    ):
        group.upload(1)
        plans = group.schedule(1, Stage.UPDATE)
        problem = StageProblem(
            load=np.stack(group.loads),
            home=plans[0].home,
            mini_batch=np.zeros(MICRO_STEPS, np.int32),
            topology=Topology(RANKS, RANKS),
            spare_slots=GROUP.spare_slots,
        )
        assert sum(plan.replicas() for plan in foremoe(problem)) > 0  # by balance alone
        cost = cost_model(model_preset(MODEL), cluster_preset("h100"), Stage.UPDATE)
        for plan, expected in zip(plans, foremoe(replace(problem, cost=cost)), strict=True):
            assert np.array_equal(plan.replica_expert, expected.replica_expert)
            assert np.array_equal(plan.replica_tokens, expected.replica_tokens)
            assert plan.replicas() == 0, "64 tokens a rank do not pay for 350 MB experts"
        other = replace(GROUP, ep_group="other", num_experts=16)
        with (
            pytest.raises(InvalidInputError, match=f"16 experts .* plans for {MODEL}, which has 8"),
            RankClient(daemon.address, other),
        ):
            pass


def test_an_unknown_model_is_refused_at_the_start(tmp_path: Path) -> None:
    ended = run_foremoe("serve", "--socket", str(tmp_path / "s"), "--model", "mixtral")
    assert ended.returncode == 2
    assert "did you mean" in ended.stderr or "mixtral-8x7b" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
