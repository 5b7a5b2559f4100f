"""The page of a running daemon: its figures are what it planned and what its ranks reported."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray

from foremoe.cli import main
from foremoe.planner.figures import copied
from foremoe.planner.imbalance import imbalance
from foremoe.planner.plan import Plan, home_tokens
from foremoe.report import page as page_module
from foremoe.rpc.status import encode_status
from foremoe.rpc.status_file import load_status, save_status
from foremoe.rpc.timeline import MAX_SPANS, Timeline
from tests.report.pages import Page
from tests.report.told import CHARTS, GROUP, Told
from tests.runtime.steps import EXPOSED_SECONDS, LAYERS, MICRO_STEPS, RANKS


@pytest.fixture(scope="module")
def page(told: Told) -> Page:
    return Page(told.html)


def test_all_figures_are_there_and_nothing_is_missing(told: Told, page: Page) -> None:
    assert "planned no stage yet" in told.said_early
    assert page.sections() == CHARTS
    assert page.missing() == []
    assert told.html.stat().st_size < 2_000_000


def test_layers_and_planning_times_are_those_of_the_status(told: Told, page: Page) -> None:
    for detail in told.polled.ep_groups[0].latest:
        rows = page.numbers("layers-update")
        assert [row[0] for row in rows] == list(LAYERS)
        for row, layer in zip(rows, detail.layers, strict=True):
            measured = (layer.imbalance_before, layer.imbalance_after, layer.imbalance_measured)
            assert row[1:4] == pytest.approx(measured)
    assert [row[0] for row in page.table("planning")] == ["0 update"]


def test_the_heat_map_is_of_the_worst_micro_step(told: Told, page: Page) -> None:
    details = zip(told.status.ep_groups[0].latest, told.polled.ep_groups[0].latest, strict=True)
    for detail, bare in details:
        assert bare.worst_micro_step is None  # what is polled every second stays small
        assert bare.figures is None
        worst, plans = detail.worst_micro_step, told.plans
        assert worst is not None
        before = np.array([imbalance(home_tokens(plan.load, worst.home)) for plan in plans])
        assert worst.micro_step == before.mean(axis=1).argmax()
        assert np.array_equal(worst.load, plans[worst.micro_step].load.sum(axis=1))
        rows = page.numbers("heatmap-update")
        assert [row[0] for row in rows] == list(LAYERS)
        placed = (worst.replica_expert >= 0).sum(axis=(1, 2))
        assert placed.sum() > 0
        assert [row[2] for row in rows] == placed.tolist()
        assert [row[3] for row in rows] == pytest.approx(before[worst.micro_step])
        assert max(row[4] for row in rows) < before[worst.micro_step].max()


def test_bands_traffic_and_frontier_are_those_of_the_plans(told: Told, page: Page) -> None:
    plans = told.plans
    before = imbalance(np.stack([home_tokens(plan.load, plan.home) for plan in plans]))
    after = imbalance(np.stack([plan.rank_tokens() for plan in plans]))
    rows = np.array(page.numbers("imbalance-update"))
    for first, values in ((1, before), (5, after)):
        expected = [*np.percentile(values, (10, 50, 90), axis=1), values.max(axis=1)]
        np.testing.assert_allclose(rows[:, first : first + 4], np.array(expected).T)
    np.testing.assert_array_equal(np.array(page.numbers("traffic-update"))[:, 1:], traffic(plans))
    own, *others = page.table("frontier-update")
    copies = copied(np.stack([plan.replica_expert for plan in plans]))
    assert [float(cell) for cell in own[1:]] == pytest.approx([after.mean(), copies.mean()])
    assert len(others) == 16


def traffic(plans: list[Plan]) -> NDArray[np.int64]:
    without, with_replicas = np.zeros((2, RANKS, RANKS), np.int64)
    for plan in plans:
        for layer, source, expert in np.ndindex(plan.load.shape):
            pairs = int(plan.load[layer, source, expert])
            without[source, plan.home[layer, expert]] += pairs
            for rank, slot in np.argwhere(plan.replica_expert[layer] == expert):
                served = int(plan.replica_tokens[layer, source, rank, slot])
                with_replicas[source, rank] += served
                pairs -= served
            with_replicas[source, plan.home[layer, expert]] += pairs
    return np.concatenate([without, with_replicas], axis=1)


def test_what_ran_when_is_what_the_ranks_recorded(page: Page) -> None:
    rows = {row[0]: [float(cell) for cell in row[1:]] for row in page.table("timeline-update")}
    each = RANKS * MICRO_STEPS * len(LAYERS)
    assert rows.keys() >= {"compute", "dispatch", "exposed", "host"}
    assert rows["exposed"][0] == rows["host"][0] == each
    assert rows["exposed"][1] == pytest.approx(1e3 * EXPOSED_SECONDS * each, rel=0.02)
    assert rows["compute"][1] > each * (1 - 1e3 * EXPOSED_SECONDS) * 0.5
    for name in ("whole", "closer"):
        red = page.by_id(f"timeline-update-{name}-exposed")
        assert "var(--red)" in ElementTree.tostring(red, encoding="unicode")
    planning = page.numbers("planning-update")
    assert len(planning) == MICRO_STEPS
    ready, deadline = ([row[column] for row in planning] for column in (2, 3))
    assert ready == sorted(ready)
    assert deadline == sorted(deadline)
    assert 0 < planning[0][1] <= ready[0] < deadline[0]  # ranks began with their plans


def test_what_no_rank_has_reported_is_a_line_and_no_empty_figure(told: Told) -> None:
    page = Page(told.planned)
    assert {len(row) for row in page.numbers("layers-update")} == {3}  # nothing measured
    figures = ("layers", "heatmap", "imbalance", "frontier", "traffic")
    assert page.sections() == [f"{figure}-update" for figure in figures]
    assert page.missing() == [
        "Not shown: planner against its deadline in the update of step 0: no rank has said when "
        "it began.",
        "Not shown: timeline of the update of step 0: no rank has reported what ran when.",
    ]


def test_what_is_kept_and_what_a_stopped_daemon_left_say_the_same(told: Told) -> None:
    (left,) = told.folder.glob("daemon-*.status")
    said = encode_status(told.status, [GROUP]).ep_groups
    for path in (told.kept, left):
        kept = encode_status(load_status(path), [GROUP]).ep_groups
        kept[0].streaming = said[0].streaming  # the ranks have gone since
        assert kept == said


def test_an_ep_group_is_chosen_or_the_worst_one(
    told: Told, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group, run = told.status.ep_groups[0], tmp_path / "two.status"
    (detail,) = group.latest
    worse = replace(detail, status=replace(detail.status, imbalance_measured=9.0), figures=None)
    other = replace(group, ep_group="ep1", latest=(worse,))
    save_status(run, replace(told.status, ep_groups=(group, other)))
    out = ["--out", str(tmp_path / "r.html")]
    assert main(["report", str(run), *out]) == 0
    page = Page(tmp_path / "r.html")
    assert page.sections() == ["layers-update", "heatmap-update"]
    assert [line.partition(": ")[2] for line in page.missing()] == [
        "micro-steps, traffic and timeline of the update of step 0: the daemon keeps no figures of "
        "it.",
        "1 more EP groups, which are balanced no worse: --ep-group ep0.",
    ]
    assert main(["report", str(run), *out, "--ep-group", "ep2"]) == 2
    assert "'ep2' is not among its groups: ep0, ep1" in capsys.readouterr().err


def test_a_large_run_stays_small(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timelines in which nothing can be drawn as one, and more ranks than tell of theirs."""
    monkeypatch.setattr(page_module, "MAX_DRAWN", 100_000)
    group = told.status.ep_groups[0]
    (detail,) = group.latest
    assert detail.figures is not None
    rows = np.array([(4 + at % 3, 0, 0, 40 * at, 20) for at in range(MAX_SPANS)], np.int32)
    timelines = {rank: Timeline(10**18, rows) for rank in range(2)}
    large = replace(detail.figures, traffic=None, sample=None, timelines=timelines)
    more = replace(group, ranks=64, latest=(replace(detail, figures=large),))
    save_status(tmp_path / "large.status", replace(told.status, ep_groups=(more,)))
    run = ["report", str(tmp_path / "large.status"), "--out", str(tmp_path / "large.html")]
    assert main(run) == 0
    assert (tmp_path / "large.html").stat().st_size < 150_000
    page = Page(tmp_path / "large.html")
    assert len(list(page.section("timeline-update").iter("image"))) == 2  # one a panel
    assert len(list(page.section("layers-update").iter("image"))) == 0
    assert page.missing() == [
        f"Not shown: {what}."
        for what in (
            "balance against copies of the update of step 0: its loads are too large to keep any",
            "traffic of the update of step 0: its EP group has too many ranks to keep it",
            "timelines of 62 more ranks in the update of step 0",
            "timeline of the last 2 micro-steps of the update of step 0: ranks report the first "
            "ones",
        )
    ]


def test_a_damaged_status_is_one_line(
    told: Told, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, damaged = told.kept.read_bytes(), tmp_path / "damaged.status"
    for content in (b"", whole[:-1], whole[:99] + bytes([whole[99] ^ 1]) + whole[100:]):
        damaged.write_bytes(content)
        assert main(["report", str(damaged), "--out", str(tmp_path / "r.html")]) == 2
        said = capsys.readouterr().err
        assert "is no status of a daemon, or was damaged since" in said
        assert said.count("\n") == 1
    assert main(["report", str(told.kept), "--keep", str(damaged)]) == 2
    assert "--keep: for what a daemon says" in capsys.readouterr().err
