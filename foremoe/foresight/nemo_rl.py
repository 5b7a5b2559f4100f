"""NeMo-RL, ``policy.router_replay.enabled=true``.

On the wire ``routed_experts`` is ``nrlre1:<dtype>:<S>x<L>x<K>:<base64>``: C-order int8, int16 or
int32, as wide as the expert count needs; before that codec it was a nested list, which NeMo-RL
still accepts. Rows are aligned with tokens; a token without a recorded route (the last one, or an
environment's) has -1 in every place, and the trainer routes it natively. The layer axis has all
decoder layers (as vLLM) or only those that route.

Source: nemo_rl/utils/routed_experts_codec.py, nemo_rl/models/generation/vllm/utils.py
(``R3_MISSING_ROUTE_SENTINEL``) and nemo_rl/models/megatron/router_replay.py of NVIDIA-NeMo/RL.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.foresight.inspection import inspect
from foremoe.foresight.model import MoeModel
from foremoe.foresight.payload import decode_base64, nested_array, raw_array
from foremoe.foresight.recording import Advance, Record, read_records
from foremoe.foresight.routing import Routing

_MAGIC = "nrlre1"
_DTYPES = ("int8", "int16", "int32")
_FIELD = "routed_experts"


def decode(sequence: str, payload: Any, model: MoeModel, *, start: int = 0) -> Routing:
    """The envelope, the nested list before it, or its array, of one sequence or message.

    start: the first row's token. Raises InvalidInputError naming sequence, field and layer.
    """
    array = _array(payload, f"sequence {sequence!r}: {_FIELD}")
    return inspect(sequence, array, model, start=start)


def read(path: Path, model: MoeModel, advance: Advance) -> Iterator[Routing]:
    """Routings of a file with a sequence a record, JSON or JSONL.

    A record has ``routed_experts`` itself or in the messages of its ``message_log``, which follow
    each other. ``sequence`` may name it.
    """
    for record in read_records(path, advance):
        if "message_log" in record.content:
            ids = _message_log(record)
        else:
            ids = _array(record.content.get(_FIELD), f"{record.where}: {_FIELD}")
        yield inspect(record.sequence, ids, model, weight_versions=record.weight_versions)


def _message_log(record: Record) -> NDArray[Any]:
    messages = record.objects("message_log")
    parts = [_array(m.content.get(_FIELD), f"{m.where}.{_FIELD}") for m in messages]
    if len({part.shape[1:] for part in parts}) != 1:
        shapes = ", ".join(str(list(part.shape)) for part in parts) or "none"
        raise InvalidInputError(
            f"{record.where}: message_log: routed_experts differ in layers or top_k, got {shapes}"
        )
    return np.concatenate(parts)


def _array(payload: Any, field: str) -> NDArray[Any]:
    if hasattr(payload, "__array__"):
        return np.asarray(payload)
    if isinstance(payload, list):
        return nested_array(payload, 3, field)
    if not isinstance(payload, str):
        raise InvalidInputError(f"{field}: expected an {_MAGIC} string or a nested list")
    parts = payload.split(":", 3)
    if len(parts) != 4 or parts[0] != _MAGIC:
        raise InvalidInputError(
            f"{field}: expected {_MAGIC}:<dtype>:<S>x<L>x<K>:<base64>, got {payload[:32]!r}..."
        )
    shape = [int(size) if re.fullmatch("[0-9]{1,9}", size) else -1 for size in parts[2].split("x")]
    return raw_array(decode_base64(parts[3], field), parts[1], shape, field, _DTYPES)
