"""The report on plans: its figures and numbers are the planner's."""

import json
import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from foremoe.cli import main
from foremoe.planner.imbalance import imbalance
from tests.report.pages import Page
from tests.report.planned import CHARTS, EXPERTS, RANKS, Planned


@pytest.fixture(scope="module")
def page(planned: Planned) -> Page:
    return Page(planned.html)


def test_facts_are_those_of_the_record(planned: Planned, page: Page) -> None:
    assert page.facts() == {
        "imbalance-before": pytest.approx(planned.record["imbalance_before"]["mean"]),
        "imbalance-after": pytest.approx(planned.record["imbalance_after"]["mean"]),
        "bound-gap": pytest.approx(planned.record["bound_gap"]["mean"]),
        "copies": pytest.approx(planned.record["copies_per_layer"]["mean"]),
        "planning": pytest.approx(planned.record["planning_seconds"] / len(planned.plans)),
    }
    assert page.sections() == CHARTS
    assert f"{planned.before().max():.2f}" in page.finding("imbalance")


def test_imbalance_is_drawn_for_every_micro_step(planned: Planned, page: Page) -> None:
    after = imbalance(np.stack([plan.rank_tokens() for plan in planned.plans]))
    rows = np.array(page.numbers("imbalance"))
    for first, values in ((1, planned.before()), (5, after)):
        expected = [*np.percentile(values, (10, 50, 90), axis=1), values.max(axis=1)]
        np.testing.assert_allclose(rows[:, first : first + 4], np.array(expected).T)
    for name in ("before", "after"):
        drawn = next(page.by_id(f"imbalance-{name}").iter("path")).get("d", "")
        assert len(re.findall("[ML]", drawn)) == len(planned.plans)


def test_every_replicated_expert_of_the_worst_micro_step_has_a_dot(
    planned: Planned, page: Page
) -> None:
    worst = int(planned.before().mean(axis=1).argmax())
    plan = planned.plans[worst]
    held = Counter(
        (layer, expert)
        for layer, slots in enumerate(plan.replica_expert)
        for expert in slots[slots >= 0].tolist()
    )
    dots = {count: page.marks(f"heatmap-replicas-{count}") for count in range(1, RANKS)}
    assert dots == {count: list(held.values()).count(count) for count in dots}
    rows = page.numbers("heatmap")
    assert sum(row[2] for row in rows) == plan.replicas()
    heat = plan.load.sum(axis=1)
    hottest = heat.max(axis=1) * EXPERTS / heat.sum(axis=1)
    np.testing.assert_allclose([row[1] for row in rows], hottest)
    assert f"micro-step {worst})" in page.finding("heatmap")
    image = next(page.section("heatmap").iter("image"))
    assert image.get("xlink:href", "").startswith("data:image/png;base64,")


def test_traffic_counts_every_pair_where_it_goes(planned: Planned, page: Page) -> None:
    without, with_replicas = np.zeros((2, RANKS, RANKS), np.int64)
    for plan in planned.plans:
        for layer, source, expert in np.ndindex(plan.load.shape):
            pairs = int(plan.load[layer, source, expert])
            without[source, expert * RANKS // EXPERTS] += pairs
            for rank, slot in np.argwhere(plan.replica_expert[layer] == expert):
                served = int(plan.replica_tokens[layer, source, rank, slot])
                with_replicas[source, rank] += served
                pairs -= served
            with_replicas[source, plan.home[layer, expert]] += pairs
    rows = np.array(page.numbers("traffic"))[:, 1:]
    np.testing.assert_array_equal(rows, np.concatenate([without, with_replicas], axis=1))
    texts = {e.text for e in page.section("traffic").iter("text")}
    assert f"{100 * with_replicas[0, 0] / with_replicas.sum():.1f}" in texts


def test_the_frontier_marks_the_plans_themselves(planned: Planned, page: Page) -> None:
    rows = page.table("frontier")
    assert rows[0][0] == "resident"
    after, copies = (
        planned.record[name]["mean"] for name in ("imbalance_after", "copies_per_layer")
    )
    assert [float(cell) for cell in rows[0][1:]] == pytest.approx([after, copies])
    same = next(row for row in rows if row[0] == "resident, target 1.02")
    assert [float(cell) for cell in same[1:]] == pytest.approx([after, copies])
    for policy in ("foremoe", "resident"):
        points = [float(row[1]) for row in rows[1:] if row[0].startswith(f"{policy},")]
        assert points == sorted(points)  # a laxer target never balances better


def test_exposed_time_is_red_and_planning_adds_up(planned: Planned, page: Page) -> None:
    streams = {row[0]: float(row[2]) for row in page.table("timeline-update")}
    assert streams["exposed"] > 0
    red = page.by_id("timeline-update-whole-exposed")
    assert "var(--red)" in ElementTree.tostring(red, encoding="unicode")
    rows = page.numbers("planning")
    assert rows[-1][2] == pytest.approx(1e3 * planned.record["planning_seconds"])
    needed = [row[3] for row in rows]
    assert needed[0] == 0
    assert needed == sorted(needed)


def test_the_page_needs_nothing_else(planned: Planned, page: Page) -> None:
    assert planned.html.stat().st_size < 2_000_000
    assert not {"script", "link", "iframe", "object"} & {
        element.tag for element in page.root.iter()
    }
    for element in page.root.iter():
        for name, value in element.attrib.items():
            assert "://" not in value, (element.tag, name)
            if name in ("href", "xlink:href", "src"):
                assert value.startswith(("#", "data:")), value
    assert "@import" not in page.source
    ids = [element.get("id") for element in page.root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for reference in re.findall(r"(?:url\(|xlink:href=\")#([^)\"]+)", page.source):
        assert reference in ids
    for figure in page.root.iter("svg"):
        assert figure.get("role") == "img"
        assert len(figure.get("aria-label", "")) > 20


def test_plans_of_a_file_give_the_same_page_and_figures_as_files(
    planned: Planned, page: Page, tmp_path: Path
) -> None:
    out, figures = tmp_path / "report.html", tmp_path / "figures"
    record = tmp_path / "report.json"
    named = ["--out", str(out), "--figures", str(figures), "--model", "mixtral-8x7b"]
    named += ["--json", str(record)]
    assert main(["report", str(planned.plans_file), *named]) == 0
    again = Page(out)
    assert again.sections() == CHARTS
    (chapter,) = json.loads(record.read_text())
    assert chapter["facts"].keys() <= page.facts().keys()
    assert list(chapter["charts"]) == CHARTS
    assert chapter["charts"]["traffic"]["rows"] == again.numbers("traffic")
    for slug in ("imbalance", "heatmap", "traffic", "timeline-update"):
        assert again.table(slug) == page.table(slug)
    assert sorted(file.name for file in figures.iterdir()) == sorted(
        f"{slug}.{kind}" for slug in CHARTS for kind in ("png", "svg")
    )
    for slug in CHARTS:
        with Image.open(figures / f"{slug}.png") as image:
            assert image.width == 1600
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20
        drawing = ElementTree.parse(figures / f"{slug}.svg")
        written = " ".join(text for text in drawing.getroot().itertext() if text.strip())
        assert again.finding(slug).split()[0] in written


def test_all_policies_are_compared(planned: Planned, tmp_path: Path) -> None:
    page, record = tmp_path / "all.html", tmp_path / "all.json"
    outputs = ["--policy", "all", "--html", str(page), "--json", str(record)]
    assert main(["plan", str(planned.trace), "--ranks", str(RANKS), *outputs]) == 0
    rows = {row[0]: [float(cell) for cell in row[1:]] for row in Page(page).table("policies")}
    for found in json.loads(record.read_text()):
        mean, p99 = (found["imbalance_after"][name] for name in ("mean", "p99"))
        assert rows[found["policy"]][:2] == pytest.approx([mean, p99])
        assert rows[found["policy"]][2] == pytest.approx(found["copies_per_layer"]["mean"])
    both = tmp_path / "both.html"
    assert main(["report", str(record), str(record), "--out", str(both)]) == 0
    assert Page(both).sections() == ["policies", "policies-2"]
