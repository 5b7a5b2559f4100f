"""A proposed schedule over a real socket: fit to be submitted, and costing nobody else anything."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from foremoe.client import (
    AttentionCost,
    ControllerClient,
    MicroStepSchedule,
    RankClient,
    RankRegistration,
)
from foremoe.errors import ExhaustedError, UnavailableError
from foremoe.planner.packing_lengths import length_packings
from foremoe.rpc.status import RuntimeStatus
from foremoe.vocabulary import Stage
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.eventually import eventually

LAYERS, EXPERTS, TOP_K, RANKS = tuple(range(12)), 16, 4, 4
GROUP = RankRegistration("packed", 0, RANKS, RANKS, 1, EXPERTS, LAYERS)


@pytest.fixture(scope="module")
def client(daemon: DaemonProcess) -> Iterator[ControllerClient]:
    with (
        ControllerClient(daemon.address, timeout_seconds=60.0) as client,
        RankClient(daemon.address, GROUP),
    ):
        yield client


def fill(client: ControllerClient, step: int, sequences: int) -> dict[str, int]:
    """Upload sequences that prefer some experts; their tokens."""
    generator = np.random.default_rng(step)
    tokens = {f"s{index:04}": int(generator.integers(1, 40)) for index in range(sequences)}
    with client.foresight_stream(step, LAYERS, EXPERTS, TOP_K) as stream:
        for name, count in tokens.items():
            heat = generator.gumbel(size=(count, len(LAYERS), EXPERTS))
            heat += generator.gumbel(size=(len(LAYERS), EXPERTS)) * 2
            stream.add(name, expert_ids=heat.argsort(axis=-1)[..., -TOP_K:].astype(np.uint8))
    return tokens


def snapshot(client: ControllerClient) -> RuntimeStatus:
    return replace(client.status(), uptime_seconds=0.0)


def packed(micro_steps: tuple[MicroStepSchedule, ...]) -> list[str]:
    return [name for held in micro_steps for names in held.ranks for name in names]


def test_proposal_can_be_submitted_as_it_is(client: ControllerClient) -> None:
    tokens = fill(client, 1, 60)
    before = snapshot(client)
    proposal = client.propose_schedule("packed", 1, 48)
    assert snapshot(client) == before
    assert sorted(packed(proposal.micro_steps)) == sorted(tokens)
    for micro_step in proposal.micro_steps:
        assert micro_step.mini_batch == 0
        assert len(micro_step.ranks) == RANKS
        assert all(sum(tokens[name] for name in names) <= 48 for names in micro_step.ranks)
    by_length = length_packings(np.array(sorted(tokens.values())), RANKS, 48, 2**31 - 1)
    assert len(proposal.micro_steps) == min(
        int(bins.max()) // RANKS + 1 for bins in by_length.values()
    )
    assert proposal.bound <= proposal.cost < proposal.length_only_cost
    planned = client.submit_schedule("packed", 1, Stage.UPDATE, proposal.micro_steps)
    assert planned == len(proposal.micro_steps)
    eventually(
        lambda: (1, "planned") in {(held.step, held.state) for held in client.status().steps}
    )


def test_mini_batches_stay_apart_and_limits_hold(client: ControllerClient) -> None:
    names = sorted(fill(client, 2, 30))
    mini_batches = [names[20:], names[:20]]
    proposal = client.propose_schedule(
        "packed",
        2,
        4096,
        mini_batches=mini_batches,
        max_sequences=2,
        attention=AttentionCost(2.0, 0.01),
    )
    for number, mini_batch in enumerate(mini_batches):
        of_batch = tuple(held for held in proposal.micro_steps if held.mini_batch == number)
        assert sorted(packed(of_batch)) == sorted(mini_batch)
        assert len(of_batch) == -(-len(mini_batch) // (2 * RANKS))
    assert all(len(ids) in (1, 2) for held in proposal.micro_steps for ids in held.ranks)
    assert client.propose_schedule("packed", 2, 4096, mini_batches=[names[:3]]).micro_steps == (
        client.propose_schedule("packed", 2, 4096, mini_batches=[names[:3]]).micro_steps
    )


def test_homes_that_move_are_chosen_for_the_step(
    daemon: DaemonProcess, client: ControllerClient
) -> None:
    fill(client, 5, 60)
    moving = replace(GROUP, ep_group="moving", moves_homes=True)
    with RankClient(daemon.address, moving):
        stay = client.propose_schedule("packed", 5, 48)
        move = client.propose_schedule("moving", 5, 48)
    assert move.bound < stay.bound
    assert move.cost < stay.cost


def test_the_daemon_answers_others_while_it_packs(client: ControllerClient) -> None:
    fill(client, 3, 600)
    with ThreadPoolExecutor(1) as thread:
        proposing = thread.submit(client.propose_schedule, "packed", 3, 64)
        answers = 0
        while not proposing.done():
            client.status()
            answers += 1
    assert len(proposing.result().micro_steps) > 10
    assert answers >= 10


def test_a_caller_who_left_costs_no_memory(daemon: DaemonProcess, client: ControllerClient) -> None:
    fill(client, 4, 600)
    before = snapshot(client)
    with ControllerClient(daemon.address, timeout_seconds=0.02) as impatient:
        for _ in range(5):  # more than there are workers: some are still queued
            with pytest.raises(UnavailableError):
                impatient.propose_schedule("packed", 4, 64)
    eventually(lambda: snapshot(client) == before)


def test_no_memory_to_pack_in_is_an_error_that_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("daemon")
    with (
        DaemonProcess(folder, "--memory-limit", "256K") as small,
        ControllerClient(small.address) as client,
        RankClient(small.address, GROUP),
    ):
        fill(client, 1, 100)
        before = snapshot(client)
        with pytest.raises(ExhaustedError, match="memory limit"):
            client.propose_schedule("packed", 1, 64)
        assert snapshot(client) == before
