"""vLLM 0.22 and later, ``--enable-return-routed-experts``.

``CompletionOutput.routed_experts`` is one array ``[rows, num_hidden_layers, top_k]`` for prompt and
output together, uint8 up to 256 experts and uint16 above. Its layer axis has every decoder layer;
dense ones stay zero. The last sampled token is never forwarded, so there are ``tokens - 1`` rows,
less those before ``routed_experts_prompt_start`` (a SamplingParams field for callers that hold the
earlier turns' rows). Ids are logical, taken before EPLB maps them. Over HTTP, ``choices[i]
.routed_experts`` is the base64 of that array's ``.npy`` bytes, or null for a request that was
aborted before its first forward.

vLLM 0.14 to 0.21 returned ``prompt_routed_experts`` beside ``routed_experts``: ``decode_array``
takes the two concatenated.

Sources: https://docs.vllm.ai/en/latest/training/routed_experts/,
https://docs.vllm.ai/en/v0.21.0/training/routed_experts_replay/ (the older form), and
vllm/model_executor/layers/fused_moe/routed_experts_capturer.py of vLLM 0.33.0.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.foresight.inspection import check_rows, inspect
from foremoe.foresight.model import MoeModel
from foremoe.foresight.payload import decode_base64, npy_array
from foremoe.foresight.recording import Advance, Record, read_arrays, read_records
from foremoe.foresight.routing import Routing

_FIELD = "routed_experts"


def decode_array(
    sequence: str,
    routed_experts: NDArray[Any],
    model: MoeModel,
    *,
    tokens: int | None = None,
    start: int = 0,
    weight_versions: tuple[str, ...] = (),
) -> Routing:
    """``CompletionOutput.routed_experts`` of one sequence.

    tokens: prompt and output tokens together, to check the rows against. start: the request's
    ``routed_experts_prompt_start``. Raises InvalidInputError naming sequence, field and layer.
    """
    ids = np.asarray(routed_experts)
    if tokens is not None:
        check_rows(ids, tokens, start, f"sequence {sequence!r}: {_FIELD}")
    return inspect(sequence, ids, model, start=start, weight_versions=weight_versions)


def decode(
    sequence: str,
    text: str,
    model: MoeModel,
    *,
    tokens: int | None = None,
    start: int = 0,
    weight_versions: tuple[str, ...] = (),
) -> Routing:
    """``choices[i].routed_experts`` of an HTTP response; otherwise as ``decode_array``."""
    where = f"sequence {sequence!r}: {_FIELD}"
    array = npy_array(decode_base64(text, where), where)
    if array.ndim != 3:
        raise InvalidInputError(
            f"{where}: expected [tokens, layers, top_k], got {list(array.shape)}"
        )
    return decode_array(
        sequence, array, model, tokens=tokens, start=start, weight_versions=weight_versions
    )


def read(path: Path, model: MoeModel, advance: Advance) -> Iterator[Routing]:
    """Routings of a file of HTTP responses (JSON or JSONL), or of an npz with an array a sequence.

    Beside the response's own fields a record may have ``sequence``, which names the sequence (with
    several choices, ``sequence/i``), ``routed_experts_prompt_start``, as the request had it, and,
    as its choices may, ``weight_versions``.
    """
    if path.suffix in (".npz", ".npy"):
        for sequence, array in read_arrays(path, advance):
            yield decode_array(sequence, array, model)
        return
    for record in read_records(path, advance):
        yield from _response(record, model)


def _response(record: Record, model: MoeModel) -> Iterator[Routing]:
    start = record.optional_integer("routed_experts_prompt_start") or 0
    choices = record.objects("choices")
    usage = record.optional_object("usage")
    for index, choice in enumerate(choices):
        text = choice.content.get(_FIELD)
        if text is None:
            continue
        tokens = None
        if usage is not None and len(choices) == 1:
            tokens = usage.optional_integer("total_tokens")
        name = record.sequence if len(choices) == 1 else f"{record.sequence}/{index}"
        versions = choice.weight_versions or record.weight_versions
        yield decode(name, text, model, tokens=tokens, start=start, weight_versions=versions)
