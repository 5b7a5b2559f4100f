"""SkyRL, ``generator.inference_engine.enable_return_routed_experts``.

Over HTTP (``/skyrl/v1/generate``) ``routed_experts`` is ``{"data": base64, "shape": [rows, layers,
top_k], "dtype": "uint8"|"int16"|"int32"}``, rows without the last sampled token. The training
batch has ``rollout_expert_indices`` ``[batch, length, layers, top_k]``, padded on the left, and
``router_padding_mask`` ``[batch, length]``, true where no route was captured: left padding, the
last token and an appended EOS. Such rows hold ``arange(top_k)``, valid ids of nobody's tokens.

Source: skyrl/backends/skyrl_train/inference_servers/generate_wire.py and
skyrl/train/dataset/preprocess.py (``make_router_padding_mask``) of NovaSky-AI/SkyRL.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.foresight.batch import read_batch, split_batch
from foremoe.foresight.inspection import inspect
from foremoe.foresight.model import MoeModel
from foremoe.foresight.payload import wire_array
from foremoe.foresight.recording import Advance, read_records
from foremoe.foresight.routing import Routing, Row

_DTYPES = ("uint8", "int16", "int32")


def decode(
    sequence: str,
    payload: Any,
    model: MoeModel,
    *,
    start: int = 0,
    weight_versions: tuple[str, ...] = (),
) -> Routing:
    """``routed_experts`` of one response.

    start: the first row's token. Raises InvalidInputError naming sequence, field and layer.
    """
    where = f"sequence {sequence!r}: routed_experts"
    ids = wire_array(payload, where, _DTYPES)
    return inspect(sequence, ids, model, start=start, weight_versions=weight_versions)


def decode_batch(
    sequences: list[str],
    rollout_expert_indices: NDArray[Any],
    router_padding_mask: NDArray[Any],
    model: MoeModel,
) -> Iterator[Routing]:
    """Every sequence of a training batch; mask ``[batch, length]``, nonzero for padding."""
    field = "rollout_expert_indices"
    for name, ids, padding in split_batch(
        sequences, rollout_expert_indices, router_padding_mask, field
    ):
        rows = np.where(padding != 0, Row.PADDING, Row.PRESENT).astype(np.uint8)
        yield inspect(name, ids, model, rows=rows, field=field)


def read(path: Path, model: MoeModel, advance: Advance) -> Iterator[Routing]:
    """Routings of a file of responses (JSON or JSONL), or of an npz with a training batch.

    A response may have ``sequence``, which names the sequence, and ``routed_experts_prompt_start``.
    The npz has ``rollout_expert_indices`` and ``router_padding_mask``.
    """
    if path.suffix == ".npz":
        arrays = ("rollout_expert_indices", "router_padding_mask")
        names, ids, padding = read_batch(path, *arrays)
        yield from decode_batch(names, ids, padding, model)
        advance(path.stat().st_size)
        return
    for record in read_records(path, advance):
        start = record.optional_integer("routed_experts_prompt_start") or 0
        payload, versions = record.content.get("routed_experts"), record.weight_versions
        yield decode(record.sequence, payload, model, start=start, weight_versions=versions)
