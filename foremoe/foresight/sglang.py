"""SGLang 0.5, ``--enable-return-routed-experts`` and ``return_routed_experts`` in the request.

``meta_info["routed_experts"]`` (``/generate``) is the base64 of raw C-order int32 without header or
shape; its shape is ``[tokens - 1 - start, num_hidden_layers, top_k]`` of the model, where start is
the request's ``routed_experts_start_len`` and tokens counts prompt and output. The OpenAI endpoints
have the same in ``sglext.routed_experts`` of a response. Every decoder layer is on the axis, dense
ones as zeros; ids are logical; columns of fused shared experts are dropped. A layer of zeros among
routing ones means that a pipeline stage did not report. ``weight_version``, or ``weight_versions``
for a request that ran across an update, says which policy chose.

Source: python/sglang/srt/state_capturer/routed_experts.py and io_struct.py of sgl-project/sglang
(0.5.23); slime and miles decode it alike.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.foresight.inspection import check_rows, inspect
from foremoe.foresight.model import MoeModel
from foremoe.foresight.payload import decode_base64
from foremoe.foresight.recording import Advance, Record, read_records
from foremoe.foresight.routing import Routing

_FIELD = "meta_info.routed_experts"


def decode_array(
    sequence: str,
    routed_experts: NDArray[Any],
    model: MoeModel,
    *,
    tokens: int | None = None,
    start: int = 0,
    weight_versions: tuple[str, ...] = (),
) -> Routing:
    """The ids of one response, ``[rows, num_hidden_layers, top_k]`` or flattened after the rows.

    So they come from the Python engine with ``skip_tokenizer_init``, in a CPU tensor, and in AReaL.
    Otherwise as ``decode``.
    """
    ids = np.asarray(routed_experts)
    if ids.ndim == 2 and ids.shape[1] == model.num_layers * model.top_k:
        ids = ids.reshape(-1, model.num_layers, model.top_k)
    if tokens is not None:
        check_rows(ids, tokens, start, f"sequence {sequence!r}: {_FIELD}")
    return inspect(
        sequence,
        ids,
        model,
        start=start,
        weight_versions=weight_versions,
        field=_FIELD,
    )


def decode(
    sequence: str,
    text: str,
    model: MoeModel,
    *,
    tokens: int | None = None,
    start: int = 0,
    weight_versions: tuple[str, ...] = (),
) -> Routing:
    """``meta_info["routed_experts"]`` of one response.

    tokens: prompt and output tokens together, to check the rows against; start: the request's
    ``routed_experts_start_len``. Raises InvalidInputError naming sequence, field and layer.
    """
    where = f"sequence {sequence!r}: {_FIELD}"
    data = decode_base64(text, where)
    row_bytes = 4 * model.num_layers * model.top_k
    if len(data) % row_bytes:
        raise InvalidInputError(
            f"{where}: {len(data)} bytes are no whole rows of int32 [{model.num_layers}, "
            f"{model.top_k}], {row_bytes} bytes each; is this another model's recording?"
        )
    ids = np.frombuffer(data, "<i4").reshape(-1, model.num_layers, model.top_k)
    return decode_array(
        sequence, ids, model, tokens=tokens, start=start, weight_versions=weight_versions
    )


def read(path: Path, model: MoeModel, advance: Advance) -> Iterator[Routing]:
    """Routings of a file of responses, JSON or JSONL, of ``/generate`` or of the OpenAI endpoints.

    Beside the response's own fields a record may have ``sequence``, which names the sequence, and
    ``routed_experts_start_len``, as the request had it.
    """
    for record in read_records(path, advance):
        if "choices" in record.content:
            held, meta = record.optional_object("sglext"), record.optional_object("metadata")
            counts = record.optional_object("usage")
        else:
            held = meta = counts = record.object("meta_info")
        text = None if held is None else held.content.get("routed_experts")
        if text is None:
            continue
        yield decode(
            record.sequence,
            text,
            model,
            tokens=None if counts is None else _tokens(counts),
            start=record.optional_integer("routed_experts_start_len") or 0,
            weight_versions=() if meta is None else meta.weight_versions,
        )


def _tokens(meta: Record) -> int | None:
    prompt, output = (meta.optional_integer(f"{part}_tokens") for part in ("prompt", "completion"))
    return None if prompt is None or output is None else prompt + output
