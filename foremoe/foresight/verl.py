"""verl, ``actor_rollout_ref.rollout.enable_rollout_routing_replay=True``.

The batch field ``routed_experts`` is ``[batch, length, layers, top_k]``, int16 as a rule; length is
that of ``input_ids``, prompts padded on the left, responses on the right. The agent loop fills a
buffer of zeros from the first prompt token on, so padding is zero, and so is the last token of each
sequence, whose experts no rollout knows (verl's ``build_r3_replay_mask`` routes it natively). A
partial rollout that was resumed keeps the earlier policy's rows and appends the new ones.

Source: verl/experimental/agent_loop/agent_loop.py, verl/utils/megatron/router_replay_utils.py and
verl/workers/rollout/llm_server.py of verl-project/verl.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.foresight.batch import read_batch, split_batch
from foremoe.foresight.inspection import inspect
from foremoe.foresight.model import MoeModel
from foremoe.foresight.recording import Advance
from foremoe.foresight.routing import Routing, Row


def decode(
    sequence: str,
    routed_experts: NDArray[Any],
    attention_mask: NDArray[Any],
    model: MoeModel,
) -> Routing:
    """One sequence of the batch.

    routed_experts: ``[length, layers, top_k]``; attention_mask: ``[length]``, nonzero for tokens.
    Raises InvalidInputError naming sequence, field and layer.
    """
    routed_experts, attention_mask = np.asarray(routed_experts), np.asarray(attention_mask)
    if attention_mask.shape != routed_experts.shape[:1]:
        raise InvalidInputError(
            f"sequence {sequence!r}: routed_experts: is {list(routed_experts.shape)}, "
            f"its attention_mask {list(attention_mask.shape)}"
        )
    rows = np.where(attention_mask != 0, Row.PRESENT, Row.PADDING).astype(np.uint8)
    tokens = np.flatnonzero(attention_mask)
    if tokens.size and not routed_experts[tokens[-1]].any():
        rows[tokens[-1]] = Row.MISSING
    return inspect(sequence, routed_experts, model, rows=rows)


def decode_batch(
    sequences: list[str],
    routed_experts: NDArray[Any],
    attention_mask: NDArray[Any],
    model: MoeModel,
) -> Iterator[Routing]:
    """Every sequence of a batch ``[batch, length, layers, top_k]``, mask ``[batch, length]``."""
    for name, ids, mask in split_batch(sequences, routed_experts, attention_mask, "routed_experts"):
        yield decode(name, ids, mask, model)


def read(path: Path, model: MoeModel, advance: Advance) -> Iterator[Routing]:
    """Routings of an npz with the batch's arrays ``routed_experts`` and ``attention_mask``."""
    names, ids, mask = read_batch(path, "routed_experts", "attention_mask")
    yield from decode_batch(names, ids, mask, model)
    advance(path.stat().st_size)
