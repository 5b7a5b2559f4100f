"""Router traces and counts as Megatron-Core and MOE-Patch write them, one JSON object a line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.foresight import megatron, moe_patch
from tests.foresight.routes import MODEL, routes


def ignore(_: int) -> None:
    """Nobody watches the progress."""


def megatron_lines(
    ids: NDArray[np.int32], step: int, rank: int = 0, block: str = "decoder"
) -> list[dict[str, Any]]:
    """As RouterTracer writes one forward pass: a record for each layer, in order of execution."""
    return [
        {
            "step": step,
            "stage": "pre_dispatch",
            "block": block,
            "layer": layer,
            "rank": rank,
            "num_tokens": len(ids),
            "topk": ids.shape[2],
            "top_indices": ids[:, index].tolist(),
        }
        | ({"mtp_idx": 0} if block == "mtp" else {})
        for index, layer in enumerate(MODEL.layers[: ids.shape[1]])
    ]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_megatron_passes_are_told_apart(tmp_path: Path) -> None:
    """Two steps of two micro-batches each, with multi-token prediction in between."""
    passes = [routes(tokens, seed=tokens) for tokens in (5, 8, 3, 4)]
    lines = megatron_lines(passes[0], 0) + megatron_lines(routes(5)[:, :1], 0, block="mtp")
    lines += megatron_lines(passes[1], 0)
    lines += megatron_lines(passes[2], 1) + megatron_lines(passes[3], 1)
    path = write(tmp_path / "router_trace_rank0.jsonl", lines)
    routings = list(megatron.read(path, MODEL.num_experts, ignore))
    assert [routing.sequence for routing in routings] == [
        f"{path}:{name}" for name in ("0/0/0", "0/0/1", "0/1/0", "0/1/1")
    ]
    for routing, ids in zip(routings, passes, strict=True):
        np.testing.assert_array_equal(routing.ids, ids)
        assert routing.layers == MODEL.layers


def test_megatron_stage_local_layers_are_shifted(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", megatron_lines(routes(2), 0))
    (routing,) = megatron.read(path, MODEL.num_experts, ignore, first_layer=24)
    assert routing.layers == (25, 26, 27)


def megatron_broken(**change: Any) -> list[dict[str, Any]]:
    lines = megatron_lines(routes(3), 0)
    lines[1] = {key: value for key, value in {**lines[1], **change}.items() if value is not ...}
    return lines


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (megatron_broken(top_indices=[[1, 2, 3, 4]]), "top_indices: expected num_tokens rows"),
        (megatron_broken(top_indices=[[1], [2, 3], []]), "top_indices: expected integers of 32"),
        (megatron_broken(top_indices=...), "top_indices: expected integers of 32 bits"),
        (megatron_broken(layer="six"), "layer: expected an integer, got 'six'"),
        (
            megatron_broken(num_tokens=1, top_indices=[[1, 2, 3, 4]]),
            r":0/0/0': layer 2 has top_indices \[1, 4\], layer 1 \[3, 4\]",
        ),
        (
            megatron_broken(top_indices=[[1, 2, 3, 16]] * 3),
            ":0/0/0': top_indices: row 0, layer 2 has expert 16",
        ),
        (
            megatron_lines(routes(3), 0) + megatron_lines(routes(3), 0)[:2],
            ":0/0/1' has no record of layer 3",
        ),
    ],
)
def test_broken_megatron_traces_are_refused(
    tmp_path: Path, lines: list[dict[str, Any]], message: str
) -> None:
    path = write(tmp_path / "t.jsonl", lines)
    with pytest.raises(InvalidInputError, match=message):
        list(megatron.read(path, MODEL.num_experts, ignore))


README_EXAMPLE = {
    "iteration": 1200,
    "rank": 0,
    "layer": "layer_6",
    "num_experts": 4,
    "top_k": 2,
    "tokens": 2048,
    "actual_assignments": [800, 965, 1150, 1181],
}


def test_moe_patch_counts_survive(tmp_path: Path) -> None:
    """The example of MOE-Patch's README, and a second layer, rank and iteration."""
    second = {**README_EXAMPLE, "layer": "layer_12", "actual_assignments": [2048, 0, 0, 2048]}
    lines = [README_EXAMPLE, second]
    lines += [{**line, "rank": 1} for line in lines] + [{**line, "iteration": 7} for line in lines]
    path = write(tmp_path / "m.jsonl", lines)
    routings = list(moe_patch.read(path, ignore))
    names = [f"{path}:{name}" for name in ("0/1200", "1/1200", "0/7")]
    assert [routing.sequence for routing in routings] == names
    for routing in routings:
        assert (routing.layers, routing.num_experts) == ((6, 12), 4)
        assert routing.histogram().tolist() == [[800, 965, 1150, 1181], [2048, 0, 0, 2048]]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 4), st.data())
def test_spread_ids_count_right_and_never_repeat(
    tokens: int, top_k: int, data: st.DataObject
) -> None:
    ids = np.array([data.draw(st.permutations(range(6)))[:top_k] for _ in range(tokens)])
    counts = np.bincount(ids.ravel(), minlength=6)
    made_up = moe_patch.spread(counts, tokens, top_k)
    assert made_up.shape == (tokens, top_k)
    np.testing.assert_array_equal(np.bincount(made_up.ravel(), minlength=6), counts)
    assert all(len(set(row)) == top_k for row in made_up.tolist())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actual_assignments": [800, 965, 1150, 1180]}, "counts 4095 pairs, but 2048 tokens"),
        ({"actual_assignments": [4096, 0, 0, 0]}, "expected 4 counts from 0 to tokens"),
        ({"actual_assignments": [800, 965, 2331]}, "expected 4 counts"),
        ({"actual_assignments": "800"}, "actual_assignments: expected integers"),
        ({"layer": "first"}, "layer: expected a name like layer_6, got 'first'"),
        ({"layer": "layer_5"}, "a layer is recorded twice"),
        ({"tokens": 1024}, "differ from those of"),
        ({"tokens": None}, "tokens: expected an integer, got None"),
    ],
)
def test_broken_moe_patch_records_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    lines = [{**README_EXAMPLE, "layer": "layer_5"}, {**README_EXAMPLE, **change}]
    with pytest.raises(InvalidInputError, match=message):
        list(moe_patch.read(write(tmp_path / "m.jsonl", lines), ignore))
