"""prime-rl, ``trainer.enable_router_replay=true``.

``RoutedExperts`` is ``{data: bytes, shape: [rows, layers, top_k], dtype}`` (msgspec between its
processes, base64 over HTTP, where ``start`` is the first row's token); dtype is uint8 or uint16,
int16 or int32 in other versions. A training sample has a row for each token: the last one, and all
that fill a micro-batch up, are zero bytes.

Source: src/prime_rl/transport/types.py and src/prime_rl/trainer/batch.py
(``_pad_routed_experts``) of PrimeIntellect-ai/prime-rl; verifiers' ``RoutedExperts`` for ``start``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from foremoe.errors import InvalidInputError
from foremoe.foresight.inspection import inspect, unfilled_tail
from foremoe.foresight.model import MoeModel
from foremoe.foresight.payload import wire_array
from foremoe.foresight.recording import Advance, read_records
from foremoe.foresight.routing import Routing, Row

_DTYPES = ("uint8", "uint16", "int16", "int32")


def decode(
    sequence: str, payload: Any, model: MoeModel, *, weight_versions: tuple[str, ...] = ()
) -> Routing:
    """``RoutedExperts`` of one sample or of one turn, as a dict.

    Zero rows at the end are padding. Raises InvalidInputError naming sequence, field and layer.
    """
    where = f"sequence {sequence!r}: routed_experts"
    ids = wire_array(payload, where, _DTYPES)
    start = payload.get("start", 0)
    if type(start) is not int:
        raise InvalidInputError(f"{where}.start: expected an integer, got {start!r}")
    rows = np.zeros(len(ids), np.uint8)
    tail = unfilled_tail(ids)
    if tail < len(ids):  # else nothing was captured at all, which is worth a word
        rows[len(ids) - tail :] = Row.PADDING
    return inspect(sequence, ids, model, rows=rows, start=start, weight_versions=weight_versions)


def read(path: Path, model: MoeModel, advance: Advance) -> Iterator[Routing]:
    """Routings of a file with a ``routed_experts`` a record, JSON or JSONL.

    ``sequence`` may name the sequence; turns of one name are joined by their ``start``.
    """
    for record in read_records(path, advance):
        payload, versions = record.content.get("routed_experts"), record.weight_versions
        yield decode(record.sequence, payload, model, weight_versions=versions)
