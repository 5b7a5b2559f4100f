"""Megatron-Core's router trace, ``--moe-routing-trace-path``.

One file for each rank, one JSON object for each (step, block, layer): ``{"step": 0, "stage":
"pre_dispatch", "block": "decoder", "layer": 3, "rank": 0, "num_tokens": 128, "topk": 8,
"top_indices": [[12, 45, ...], ...]}``. Sequences are not told apart: a *sequence* here is what one
rank routed in one forward pass (a step repeats a layer once for each micro-batch, and once more
when it recomputes activations), named ``rank/step/pass``. Records of multi-token-prediction blocks
(``"block": "mtp"``) share layer numbers with decoder layers and are left out.

``layer`` comes from the module's name, ``decoder.layers.N``: within a pipeline stage it counts from
the stage's first layer. With pipeline parallelism read each stage's files apart, with its
``first_layer``.

Source: megatron/core/transformer/moe/router_trace.py of NVIDIA/Megatron-LM (main, 2026).
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.foresight.inspection import inspect
from foremoe.foresight.model import MoeModel
from foremoe.foresight.payload import nested_array
from foremoe.foresight.recording import Advance, Record, read_records
from foremoe.foresight.routing import Routing


def decode(name: str, records: list[Record], num_experts: int, *, first_layer: int = 0) -> Routing:
    """One forward pass of one rank from its layers' records.

    Raises InvalidInputError naming the pass and the layer when the records disagree in tokens or
    top_k, or an id is no expert.
    """
    by_layer = sorted((record.integer("layer") + first_layer, record) for record in records)
    layers = tuple(layer for layer, _ in by_layer)
    ids = [_indices(record) for _, record in by_layer]
    for layer, array in zip(layers, ids, strict=True):
        if array.shape != ids[0].shape:
            raise InvalidInputError(
                f"sequence {name!r}: layer {layer} has top_indices {list(array.shape)}, layer "
                f"{layers[0]} {list(ids[0].shape)}; was the trace cut off?"
            )
    model = MoeModel(num_experts, ids[0].shape[1], layers[-1] + 1, layers)
    return inspect(name, np.stack(ids, axis=1), model, field="top_indices")


def read(
    path: Path, num_experts: int, advance: Advance, *, first_layer: int = 0
) -> Iterator[Routing]:
    """Routings of one rank's JSONL file, one for each forward pass."""
    decoder = (r for r in read_records(path, advance) if r.content.get("block") != "mtp")
    for (rank, step), records in groupby(decoder, lambda r: (r.integer("rank"), r.integer("step"))):
        passes: list[dict[int, Record]] = []
        for record in records:
            layer = record.integer("layer")
            place = next((p for p in passes if layer not in p), None)
            if place is None:
                place = {}
                passes.append(place)
            place[layer] = record
        for index, by_layer in enumerate(passes):
            name = f"{path}:{rank}/{step}/{index}"
            if by_layer.keys() != passes[0].keys():
                missing = sorted(passes[0].keys() - by_layer.keys())
                raise InvalidInputError(
                    f"sequence {name!r} has no record of layer {missing[0]}; was the trace cut off?"
                )
            yield decode(name, list(by_layer.values()), num_experts, first_layer=first_layer)


def _indices(record: Record) -> NDArray[np.int32]:
    """``top_indices`` as int32 ``[num_tokens, topk]``."""
    field = f"{record.where}: top_indices"
    ids = nested_array(record.content.get("top_indices"), 2, field)
    if ids.shape != (record.integer("num_tokens"), record.integer("topk")):
        raise InvalidInputError(
            f"{field}: expected num_tokens rows of topk expert ids, got {list(ids.shape)}"
        )
    return ids
