"""From captured ids to histograms: ids per second beside numpy.bincount, in one run, on one core.

    python -m benchmarks.foresight [--pairs N] [--json FILE]

One sequence of 16,384 tokens whose experts are drawn with a skew, as an engine captures it. *count*
is ``expert_histogram``; *decode* is the whole way of a decoder, which first looks at every row for
padding, missing routes and layers that were not captured. numpy counts each layer by
``numpy.bincount``, the faster of the two ways we know (the other adds ``layer * experts`` to all
ids and counts once); it does not look for bad ids. Pairs are interleaved (A B B A).
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.pairing import Ratio, ratio, turns
from benchmarks.record import Record
from foremoe.foresight.histogram import expert_histogram, warm_up
from foremoe.foresight.inspection import inspect
from foremoe.foresight.model import MoeModel

TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Figure:
    """Medians, in million ids a second, and what the pairs say."""

    case: str
    dtype: str
    way: str
    ids: int
    million_ids_per_second: float
    numpy_million_ids_per_second: float
    faster: Ratio


CASES = (
    ("Qwen3-30B-A3B", MoeModel(128, 8, 48, tuple(range(48))), "uint8"),  # vLLM
    ("Qwen3-30B-A3B", MoeModel(128, 8, 48, tuple(range(48))), "int32"),  # SGLang, slime
    ("DeepSeek-V3", MoeModel(256, 8, 61, tuple(range(3, 61))), "uint8"),
    ("DeepSeek-V3", MoeModel(256, 8, 61, tuple(range(3, 61))), "int16"),  # verl
    ("Kimi-K2", MoeModel(384, 8, 61, tuple(range(1, 61))), "uint16"),
)


def main() -> None:
    """Measure every case, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    record = Record("foresight", {"tokens": TOKENS, "pairs": arguments.pairs})
    warm_up()
    figures = [figure for case in CASES for figure in _measured(*case, arguments.pairs)]
    table = Table("model", "ids", "way", "M ids/s", "numpy M ids/s")
    table.add_column("faster by", no_wrap=True)
    for figure in figures:
        speeds = (figure.million_ids_per_second, figure.numpy_million_ids_per_second)
        shown = [f"{speed:.0f}" for speed in speeds]
        table.add_row(figure.case, figure.dtype, figure.way, *shown, str(figure.faster))
    Console().print(table)
    if arguments.json:
        record.write(arguments.json, [asdict(figure) for figure in figures])


def _measured(case: str, model: MoeModel, dtype: str, pairs: int) -> list[Figure]:
    full = captured(model).astype(dtype)
    routing = np.ascontiguousarray(full[:, list(model.layers)])
    countable = routing.view("uint16") if dtype == "int16" else routing
    ways: dict[str, Callable[[], Any]] = {
        "count": lambda: expert_histogram(countable, model.num_experts),
        "decode": lambda: inspect("a", full, model).histogram(),
    }
    figures = []
    for way, run in ways.items():
        np.testing.assert_array_equal(run(), bincount(routing, model.num_experts))
        ours: list[float] = []
        theirs: list[float] = []
        for is_ours in turns(pairs):
            if is_ours:
                ours.append(_seconds(run))
            else:
                theirs.append(_seconds(lambda: bincount(routing, model.num_experts)))
        our_speed, their_speed = (routing.size / np.median(times) / 1e6 for times in (ours, theirs))
        speeds = float(our_speed), float(their_speed)
        figures.append(Figure(case, dtype, way, routing.size, *speeds, ratio(theirs, ours)))
    return figures


def captured(model: MoeModel) -> NDArray[np.int32]:
    """Ids int32 ``[TOKENS, num_layers, top_k]``, hot experts more often, dense layers zero."""
    generator = np.random.default_rng(0)
    some = 512
    heat = generator.gumbel(size=(1, len(model.layers), model.num_experts))
    scores = heat + generator.gumbel(size=(some, len(model.layers), model.num_experts))
    chosen = np.argpartition(scores, -model.top_k, axis=-1)[..., -model.top_k :]
    ids = np.zeros((TOKENS, model.num_layers, model.top_k), np.int32)
    ids[:, list(model.layers)] = np.tile(chosen, (TOKENS // some, 1, 1))
    return ids


def bincount(ids: NDArray[Any], num_experts: int) -> NDArray[np.int64]:
    """What numpy offers: one bincount a layer."""
    layers = range(ids.shape[1])
    return np.stack([np.bincount(ids[:, i].ravel(), minlength=num_experts) for i in layers])


def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
