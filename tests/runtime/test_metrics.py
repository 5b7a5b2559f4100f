"""/metrics and /healthz of a real daemon, after steps that clients ran and reported."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from foremoe.planner.imbalance import imbalance
from foremoe.planner.plan import home_tokens
from foremoe.vocabulary import Stage
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.eventually import eventually
from tests.runtime.scrapes import Scrape
from tests.runtime.steps import EXPERTS, LAYERS, MICRO_STEPS, RANKS, attached, report_of

LABELS = {"ep_group", "stage", "layer", "rank", "path", "reason", "state", "version", "le"}
RPC_LABELS = {"service", "method", "code"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("daemon")
    with DaemonProcess(folder, "--metrics-port", "0") as process:
        yield process


def test_a_stage_is_counted_as_it_was_reported(daemon: DaemonProcess, step: int) -> None:
    with attached(daemon, "counted") as group:
        group.upload(step)
        plans = group.schedule(step, Stage.UPDATE)
        said = group.report(step, Stage.UPDATE, plans)
        scrape = Scrape(daemon)
        assert scrape.value("foremoe_plan_streams", ep_group="counted") == RANKS
        assert scrape.value("foremoe_registered_ranks", ep_group="counted") == RANKS
        assert scrape.value("foremoe_steps", state="executing") >= 1
        assert scrape.value("foremoe_stored_bytes") == group.controller.status().stored_bytes > 0
        assert scrape.value("foremoe_rpcs_running") >= RANKS  # the streams
    labels = {"ep_group": "counted", "stage": "update"}
    reports = RANKS * MICRO_STEPS
    copies = scrape.values("foremoe_copies_total", "path", **labels)
    assert copies == {"host": 5 * reports, "peer": 2 * reports, "gradient": 0}
    copied = scrape.values("foremoe_copied_bytes_total", "path", **labels)
    assert copied == {"host": 1000 * reports, "peer": 100 * reports, "gradient": 10 * reports}
    assert scrape.value("foremoe_stages_total", **labels) == 1
    assert scrape.value("foremoe_micro_steps_total", **labels) == MICRO_STEPS
    assert scrape.value("foremoe_stage_seconds_total", **labels) == 1.5 * MICRO_STEPS
    assert scrape.value("foremoe_planning_seconds_count", **labels) == 1
    assert scrape.value("foremoe_planning_seconds_bucket", **labels, le="+Inf") == 1
    assert 0 < scrape.value("foremoe_planning_seconds_sum", **labels) < 60
    exposed = scrape.values("foremoe_exposed_seconds_total", "rank", **labels)
    per_rank = [MICRO_STEPS * (len(LAYERS) * 0.001 * (rank + 1) + 0.25) for rank in range(RANKS)]
    assert exposed == pytest.approx({str(rank): each for rank, each in enumerate(per_rank)})
    by_layer = scrape.values("foremoe_layer_exposed_seconds_total", "layer", **labels)
    assert by_layer == pytest.approx({str(layer): 0.003 * MICRO_STEPS for layer in LAYERS})
    tokens = scrape.values("foremoe_computed_tokens_total", "rank", **labels)
    computed = [sum(int(report.computed_tokens.sum()) for report in rank) for rank in said]
    assert tokens == {str(rank): total for rank, total in enumerate(computed)}
    before = np.mean([imbalance(home_tokens(p.load, p.home)) for p in plans], axis=0)
    after = np.mean([imbalance(plan.rank_tokens()) for plan in plans], axis=0)
    assert before.min() > after.max()  # or the next lines would prove little
    for name, expected in (("before", before), ("after", after), ("measured", after)):
        shown = scrape.values(f"foremoe_imbalance_{name}", "layer", **labels)
        assert shown == pytest.approx(dict(zip(map(str, LAYERS), expected, strict=True)))


def test_degraded_micro_steps_are_counted_once_under_their_cause(
    daemon: DaemonProcess, step: int
) -> None:
    with attached(daemon, "degraded") as group:
        group.upload(step)
        plans = group.schedule(step, Stage.RECOMPUTE)
        reasons = {
            (0, 0): "another rank holds no such plan",
            (1, 0): "no plan in time",
            (0, 1): "something\nnobody has heard of",
            (1, 1): "something else",
            (0, 2): "another rank holds no such plan",
            (1, 2): "another rank holds no such plan",
        }
        group.report(step, Stage.RECOMPUTE, plans, reasons)
        scrape = Scrape(daemon)
        status = group.status(step, Stage.RECOMPUTE)
    counted = {"no plan in time": 1, "other": 1, "another rank holds no such plan": 1}
    labels = {"ep_group": "degraded", "stage": "recompute"}
    assert scrape.values("foremoe_degraded_micro_steps_total", "reason", **labels) == counted
    assert status.degraded_reasons == counted
    assert (status.degraded, status.agreement_misses) == (3, 2)
    assert scrape.value("foremoe_agreement_misses_total", **labels) == 2


def test_reports_of_a_stage_that_never_got_whole_count_at_its_release(
    daemon: DaemonProcess, step: int
) -> None:
    labels = {"ep_group": "partly", "stage": "update"}
    with attached(daemon, "partly") as group:
        group.upload(step)
        plans = group.schedule(step, Stage.UPDATE)
        group.ranks[0].report(step, Stage.UPDATE, [report_of(plans[0], 0, 0, "")])
        eventually(lambda: group.status(step, Stage.UPDATE).seconds > 0)
        assert Scrape(daemon).value("foremoe_stages_total", **labels) == 0
        group.controller.release_step(step)
    scrape = Scrape(daemon)
    assert scrape.value("foremoe_stages_total", **labels) == 1
    assert scrape.value("foremoe_micro_steps_total", **labels) == 0
    assert scrape.value("foremoe_copies_total", **labels, path="host") == 5
    assert scrape.values("foremoe_imbalance_measured", "layer", **labels) == {}


def test_rpcs_are_counted_by_method_and_code(daemon: DaemonProcess, step: int) -> None:
    def calls(method: str, code: str) -> float:
        counts = Scrape(daemon).values("foremoe_rpcs_total", "code", method=method)
        return counts.get(code, 0)

    refused = calls("ReleaseStep", "INVALID_ARGUMENT")
    with attached(daemon, "rpcs") as group:
        registered = calls("RegisterRank", "OK")
        assert registered >= RANKS
        group.upload(step)
        assert calls("UploadForesight", "OK") >= 1
        with daemon.open_channel() as channel, pytest.raises(grpc.RpcError):
            raw(channel, "ScheduleService/ReleaseStep")(b"\xff", timeout=10)
        assert calls("ReleaseStep", "INVALID_ARGUMENT") == refused + 1
        with daemon.open_channel() as channel, pytest.raises(grpc.RpcError):
            raw(channel, "NoService/Anything")(b"", timeout=10)
    eventually(lambda: calls("StreamPlans", "CANCELLED") >= RANKS)
    assert Scrape(daemon).values("foremoe_rpcs_total", "code", method="Anything") == {}


def raw(channel: grpc.Channel, method: str) -> Callable[..., bytes]:
    call: Callable[..., bytes] = channel.unary_unary(f"/foremoe.rpc.v1.{method}", None, None)
    return call


def test_names_and_labels_are_as_documented(daemon: DaemonProcess, step: int) -> None:
    with attached(daemon, "named") as group:
        group.run(step)
    scrape = Scrape(daemon)
    documented = set(re.findall(r"^\| `(foremoe_\w+)`", docs(), re.MULTILINE))
    for family in scrape.families:
        if family.name.startswith("process_"):
            continue
        ending = "_total" if family.type == "counter" else ""
        assert family.name + ending in documented
        documented.discard(family.name + ending)
        for sample in family.samples:
            allowed = RPC_LABELS if family.name == "foremoe_rpcs" else LABELS
            assert sample.labels.keys() <= allowed, sample
            assert not {"layer", "rank"} <= sample.labels.keys(), sample
    assert documented == {"foremoe_leader_connected"}  # of followers, see test_followers.py
    of_group = [s for s in scrape.samples if s.labels.get("ep_group") == "named"]
    by_expert = len(LAYERS) * EXPERTS * len(Stage)
    assert len(of_group) < 4 * len(Stage) * (len(LAYERS) + RANKS) + 2 * 40 < 10 * by_expert


def docs() -> str:
    return (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
