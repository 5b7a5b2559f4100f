"""What a daemon shows after ranks have really trained a step: metrics, dashboard, foremoe top."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foremoe.vocabulary import DegradedReason
from tests.commands.training_workers import EP_GROUP, STEP, train_one_step
from tests.processes import run_ranks
from tests.runtime.daemon_process import DaemonProcess, run_foremoe
from tests.runtime.scrapes import Scrape
from tests.training.dense import Case

RANKS = 2
DEPLOY = Path(__file__).parents[2] / "deploy" / "grafana"
DASHBOARD = DEPLOY / "dashboards" / "foremoe.json"
LABELS = {"ep_group": EP_GROUP, "stage": "update"}

Trained = tuple[DaemonProcess, Case, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    case = Case(seed=31, ranks=RANKS, mini_batches=1, micro_steps=3)
    folder = tmp_path_factory.mktemp("daemon")
    with DaemonProcess(folder, "--metrics-port", "0") as daemon:
        yield daemon, case, run_ranks(train_one_step, RANKS, case, daemon.address)


@pytest.fixture(scope="module")
def scrape(trained: Trained) -> Scrape:
    return Scrape(trained[0])


def test_metrics_say_what_the_sessions_recorded(trained: Trained, scrape: Scrape) -> None:
    _, case, results = trained
    assert all(all(result["balanced"]) for result in results)
    assert scrape.value("foremoe_micro_steps_total", **LABELS) == case.total
    tokens = scrape.values("foremoe_computed_tokens_total", "rank", **LABELS)
    assert tokens == {str(rank): result["tokens"] for rank, result in enumerate(results)}
    exposed = scrape.values("foremoe_exposed_seconds_total", "rank", **LABELS)
    assert exposed == pytest.approx(
        {str(rank): result["exposed_seconds"] for rank, result in enumerate(results)}
    )
    copies = scrape.values("foremoe_copies_total", "path", **LABELS)
    assert sum(copies.values()) == sum(result["copies"] for result in results) > 0
    copied = scrape.values("foremoe_copied_bytes_total", "path", **LABELS)
    assert copied["host"] == sum(result["host_bytes"] for result in results) > 0
    assert copied["gradient"] > 0
    seconds = scrape.value("foremoe_stage_seconds_total", **LABELS)
    assert seconds == pytest.approx(max(result["seconds"] for result in results))
    degraded = scrape.values("foremoe_degraded_micro_steps_total", "reason", **LABELS)
    assert degraded.keys() <= {DegradedReason.LATE_COPIES}


PANELS = [p for p in json.loads(DASHBOARD.read_text())["panels"] if p["type"] != "row"]


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_every_query_of_the_dashboard_names_what_is_there(
    panel: dict[str, Any], scrape: Scrape
) -> None:
    labels: dict[str, set[str]] = {}
    for sample in scrape.samples:
        labels.setdefault(sample.name, {"instance"}).update(sample.labels)
    # These have no series before something goes wrong.
    labels["foremoe_degraded_micro_steps_total"] = {"ep_group", "stage", "reason"}
    assert panel["targets"]
    for target in panel["targets"]:
        query = target["expr"]
        names = re.findall(r"\b(?:foremoe|process)_\w+", query)
        assert names, query
        for name in names:
            assert name in labels, query
        for name, selected in re.findall(r"(\w+)\{([^}]*)\}", query):
            assert set(re.findall(r"(\w+)\s*[=!]", selected)) <= labels[name], query
        grouped = re.findall(r"\b(?:by|on) \(([^)]*)\)", query)
        shown = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
        used = {name for group in grouped for name in re.split(r",\s*", group)} | set(shown)
        assert used <= set().union(*(labels[name] for name in names)), query


def test_dashboard_and_compose_file_fit_together() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    sources = {panel["datasource"]["uid"] for panel in dashboard["panels"] if "targets" in panel}
    provisioned = (DEPLOY / "provisioning" / "datasources" / "prometheus.yml").read_text()
    assert [f"uid: {uid}" in provisioned for uid in sources] == [True]
    compose = (DEPLOY / "docker-compose.yml").read_text()
    for mounted in re.findall(r"- (\./\S+?):", compose):
        assert (DEPLOY / mounted).exists(), mounted
    folder = re.search(r"path: (\S+)", (DEPLOY / "provisioning/dashboards/foremoe.yml").read_text())
    assert folder is not None
    assert f"./dashboards:{folder[1]}:ro" in compose
    assert f"{folder[1]}/{DASHBOARD.name}" in compose
    for image in re.findall(r"image: (\S+)", compose):
        assert re.fullmatch(r"\S+:v?\d+\.\d+\.\d+", image), f"{image} is not pinned"


def test_top_shows_the_step_as_json_and_as_tables(trained: Trained) -> None:
    daemon, case, results = trained
    done = run_foremoe("top", "--socket", daemon.address, "--once", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    (group,) = json.loads(done.stdout)["ep_groups"]
    (detail,) = group["latest"]
    stage = detail["status"]
    assert (group["ep_group"], detail["step"], stage["stage"]) == (EP_GROUP, STEP, "update")
    assert stage["reported"] == stage["planned"] == case.total
    assert [layer["layer"] for layer in detail["layers"]] == list(case.layer_ids)
    assert all(layer["imbalance_measured"] >= 1 for layer in detail["layers"])
    assert stage["imbalance_measured"] < stage["imbalance_before"]
    assert stage["imbalance_measured"] == pytest.approx(stage["imbalance_after"])
    mean = sum(result["tokens"] for result in results) / RANKS
    loads = {rank["rank"]: rank["relative_load"] for rank in detail["busiest_ranks"]}
    assert loads == pytest.approx({r: results[r]["tokens"] / mean for r in range(RANKS)})
    copied = {path["path"]: path["copied_bytes"] for path in stage["paths"]}
    assert detail["throughput"] == {
        path: pytest.approx(size / stage["seconds"]) for path, size in copied.items()
    }
    shown = run_foremoe("top", "--socket", daemon.address, "--once").stdout
    assert f"imbalance of layers of {EP_GROUP}" in shown
    before, after = stage["imbalance_before"], stage["imbalance_measured"]
    assert f"{before:.3f} -> {after:.3f}" in shown
