"""A small stage, planned by ``foremoe plan`` with everything it writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.cli import main
from foremoe.planner.archive import load_plans
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.imbalance import imbalance
from foremoe.planner.plan import Plan, home_tokens
from tests.foresight.test_trace import write

CHARTS = ["imbalance", "heatmap", "frontier", "traffic", "timeline-update", "planning"]
LAYERS, RANKS, EXPERTS = 3, 4, 8
REPEATS = 100  # of each sequence's tokens


def routing() -> dict[str, NDArray[Any]]:
    """48 sequences that favour an expert of their own, long enough for replicas to pay."""
    generator = np.random.default_rng(3)
    ids = []
    for _ in range(48):
        heat = generator.dirichlet(np.full(EXPERTS, 0.6), LAYERS)
        noise = generator.gumbel(size=(24, LAYERS, EXPERTS))
        chosen = np.argsort(-(np.log(heat + 1e-9) + noise), axis=-1)[..., :2].astype(np.uint8)
        ids.append(np.tile(chosen, (REPEATS, 1, 1)))
    return {
        "experts": np.concatenate(ids),
        "offsets": np.arange(49) * 24 * REPEATS,
        "num_experts": np.array(EXPERTS),
    }


class Planned:
    """What ``foremoe plan`` wrote."""

    def __init__(self, folder: Path) -> None:
        self.trace = write(folder / "trace.npz", routing())
        self.plans_file, page = folder / "plans.npz", folder / "plan.html"
        options = ["--ranks", str(RANKS), "--spare-slots", "2", "--policy", "resident"]
        outputs = ["--plans", str(self.plans_file), "--json", str(folder / "plan.json")]
        model = ["--model", "mixtral-8x7b", "--target", "1.02", "--html", str(page)]
        assert main(["plan", str(self.trace), *options, *outputs, *model]) == 0
        self.plans: list[Plan] = load_plans(self.plans_file)
        self.record = json.loads((folder / "plan.json").read_text())
        self.html = page

    def before(self) -> NDArray[np.float64]:
        home = contiguous_homes(LAYERS, EXPERTS, RANKS)
        return imbalance(np.stack([home_tokens(plan.load, home) for plan in self.plans]))
