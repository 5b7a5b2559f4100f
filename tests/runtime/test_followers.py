"""A leader, a follower, and ranks that only ever talk to the daemon of their own node."""

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from foremoe.client import ControllerClient, MicroStepSchedule, RankClient
from foremoe.errors import ConflictError, UnavailableError, UnknownError
from foremoe.rpc.channel import KEEPALIVE_SECONDS, SILENCE_SECONDS
from foremoe.rpc.v1.foresight_pb2_grpc import ForesightServiceStub
from foremoe.vocabulary import DegradedReason, Stage
from tests.runtime.certificates import Authority, needs_openssl, tls_options
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.eventually import eventually
from tests.runtime.nodes import Nodes
from tests.runtime.scrapes import Scrape
from tests.runtime.steps import GROUP, Group
from tests.runtime.uploads import histogram, upload

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def nodes(tmp_path: Path, authority: Authority) -> Nodes:
    return Nodes.create(tmp_path, authority)


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[tuple[Nodes, DaemonProcess]]:
    """Both daemons, for tests that leave them alone; the follower is given."""
    nodes = Nodes.create(tmp_path_factory.mktemp("nodes"), authority)
    with nodes.leader(), nodes.follower("--event-loop", "asyncio") as follower:
        yield nodes, follower


def test_a_step_is_balanced_across_nodes(running: tuple[Nodes, DaemonProcess]) -> None:
    """Group.run checks that both ranks report every micro-step, each through its own daemon."""
    nodes, _ = running
    with nodes.attached("across") as group:
        group.upload(1)
        plans = group.schedule(1, Stage.UPDATE)
        assert any(np.any(plan.replica_expert >= 0) for plan in plans)
        for plan, load in zip(plans, group.loads, strict=True):
            assert plan.rank_tokens().sum() == load.sum()
        group.report(1, Stage.UPDATE, plans)
        status = group.status(1, Stage.UPDATE)
        assert status.imbalance_measured == pytest.approx(status.imbalance_after)
        assert status.imbalance_after < status.imbalance_before


def test_a_controller_may_talk_to_a_follower(running: tuple[Nodes, DaemonProcess]) -> None:
    nodes, _ = running
    with (
        nodes.attached("by follower") as group,
        ControllerClient(nodes.sockets[1], credentials=nodes.job) as controller,
    ):
        Group(controller, "by follower", group.ranks).run(2)
        assert controller.status().daemon_id == group.controller.status().daemon_id
        controller.release_step(2)
        assert 2 not in [step.step for step in group.controller.status().steps]


def test_what_the_leader_refuses_is_refused_in_its_words(
    running: tuple[Nodes, DaemonProcess],
) -> None:
    nodes, follower = running
    with nodes.attached("refusals") as group:
        other = replace(GROUP, ep_group="refusals", spare_slots=2)
        with pytest.raises(ConflictError, match="was defined with"):
            RankClient(nodes.sockets[1], other, nodes.job).start()
        schedule = [MicroStepSchedule(0, [["a"], ["b"]])]
        with (
            ControllerClient(nodes.sockets[1], credentials=nodes.job) as controller,
            pytest.raises(UnknownError, match="step 404 is not known"),
        ):
            controller.submit_schedule("refusals", 404, Stage.UPDATE, schedule)
        cut = upload(405, {"a": histogram(2, 0, 0, 0)})[:-1]
        with follower.open_channel(nodes.job) as channel, pytest.raises(grpc.RpcError) as refusal:
            ForesightServiceStub(channel).UploadForesight(iter(cut), timeout=20)
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "ended without a commit" in (refusal.value.details() or "")
        assert 405 not in [step.step for step in group.controller.status().steps]


def test_followers_do_not_follow_followers(running: tuple[Nodes, DaemonProcess]) -> None:
    """A follower that was told to join itself would otherwise ask itself for ever."""
    nodes, _ = running
    folder = nodes.folder / "loop"
    folder.mkdir(mode=0o700)
    own = replace(nodes, folder=folder)
    shown = tls_options(nodes.leader_credentials)
    address = f"127.0.0.1:{own.port}"
    with (
        DaemonProcess(folder, "--join", address, "--also-listen", address, *shown) as daemon,
        ControllerClient(daemon.address, credentials=nodes.job) as controller,
        pytest.raises(UnavailableError, match="itself a follower"),
    ):
        controller.status()


def test_ranks_go_on_without_the_leader_and_find_the_next_one(nodes: Nodes) -> None:
    first = nodes.leader().wait_serving()
    with nodes.follower("--metrics-port", "0") as follower, nodes.attached("lost") as group:
        group.run(1)
        far = group.ranks[1]
        eventually(lambda: Scrape(follower).value("foremoe_leader_connected") == 1)
        group.upload(2)
        group.schedule(2, Stage.UPDATE)
        first.kill()
        eventually(lambda: not far.connected)
        assert far.missing_reason is DegradedReason.LEADER_LOST
        eventually(lambda: not group.ranks[0].connected)
        assert group.ranks[0].missing_reason is DegradedReason.RUNTIME_LOST
        eventually(lambda: Scrape(follower).value("foremoe_leader_connected") == 0)
        begin = time.monotonic()
        assert far.wait(2, Stage.UPDATE, 0, 30.0) is not None  # has arrived, and is still used
        assert far.wait(3, Stage.UPDATE, 0, 30.0) is None
        assert time.monotonic() - begin < 5
        with (
            ControllerClient(nodes.sockets[1], credentials=nodes.job) as controller,
            pytest.raises(UnavailableError, match="the leader does not answer"),
        ):
            controller.status()
        with nodes.leader():
            eventually(lambda: all(rank.connected for rank in group.ranks))
            group.run(3)
            assert group.status(3, Stage.UPDATE).degraded == 0
            eventually(lambda: Scrape(follower).value("foremoe_leader_connected") == 1)
            log = follower.log.read_text()
            assert (log.count("leader found"), log.count("leader lost")) == (2, 1)
        assert follower.terminate() == 0


def test_a_follower_may_come_first_and_be_restarted(nodes: Nodes) -> None:
    follower = nodes.follower().wait_serving()
    with nodes.leader(), nodes.attached("restarts") as group:
        eventually(lambda: all(rank.connected for rank in group.ranks))
        group.run(1)
        follower.kill()
        eventually(lambda: not group.ranks[1].connected)
        assert group.ranks[1].missing_reason is DegradedReason.RUNTIME_LOST
        assert group.ranks[0].connected
        with nodes.follower() as second:
            eventually(lambda: group.ranks[1].connected)
            group.run(2)
            assert second.terminate() == 0  # ends the streams it relays


def test_a_frozen_leader_is_noticed(nodes: Nodes) -> None:
    """No packet says so: only the keepalive finds out, as it does when a link is cut."""
    with nodes.leader() as leader, nodes.follower(), nodes.attached("frozen") as group:
        eventually(lambda: all(rank.connected for rank in group.ranks))
        leader.process.send_signal(signal.SIGSTOP)
        try:
            begin = time.monotonic()
            eventually(lambda: not group.ranks[1].connected)
            assert time.monotonic() - begin < 2 * (KEEPALIVE_SECONDS + SILENCE_SECONDS)
        finally:
            leader.process.send_signal(signal.SIGCONT)
        eventually(lambda: group.ranks[1].connected)
        group.run(1)


def test_a_follower_that_the_leader_refuses_says_so(nodes: Nodes) -> None:
    with nodes.leader("--tls-allow", "somebody else"), nodes.follower() as follower:
        with ControllerClient(nodes.sockets[1], credentials=nodes.job) as controller:
            for _ in range(2):
                with pytest.raises(UnavailableError, match="refuses the daemon of this node"):
                    controller.status()
        assert follower.log.read_text().count("the leader refuses this daemon") == 1


def test_a_follower_takes_up_new_certificates(nodes: Nodes, authority: Authority) -> None:
    """Its own expired and was replaced: the leader, restarted, wants the new one."""
    with nodes.follower() as follower:
        first = nodes.leader("--tls-allow", "follower").wait_serving()
        eventually(lambda: follower.log.read_text().count("leader found") == 1)
        first.kill()
        authority.issue("new-name", file="follower")
        with (
            nodes.leader("--tls-allow", "new-name"),
            ControllerClient(nodes.sockets[1], 10.0, 20.0, nodes.job) as controller,
        ):
            assert controller.status().ep_groups == ()
        assert "credentials as they are now" in follower.log.read_text()


def test_join_is_refused_in_clear_text_beyond_loopback(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    daemon = DaemonProcess(tmp_path, "--join", "example.com:7400")
    assert daemon.process.wait(timeout=60) == 2
    assert "mutual TLS only" in daemon.log.read_text()
    assert daemon.log.read_text().count("\n") == 1
