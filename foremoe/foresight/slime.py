"""slime (and miles), ``--use-rollout-routing-replay``.

``Sample.rollout_routed_experts`` is int32 ``[tokens - 1, layers, top_k]`` as SGLang returned it. On
its way into the trainer each sample gets a row more, and the packed micro-batch as many as its
alignment needs; those rows are ``arange % num_experts``, valid ids of nobody's tokens, which no
look at the ids can tell from a choice. Pass ``tokens`` to have them known as padding.

Source: slime/backends/megatron_utils/cp_utils.py (``_pad_routed_experts``) of THUDM/slime.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.foresight.inspection import inspect
from foremoe.foresight.model import MoeModel
from foremoe.foresight.recording import Advance, read_arrays
from foremoe.foresight.routing import Routing, Row


def decode(
    sequence: str,
    rollout_routed_experts: NDArray[Any],
    model: MoeModel,
    *,
    tokens: int | None = None,
    weight_versions: tuple[str, ...] = (),
) -> Routing:
    """``rollout_routed_experts`` of one sample, as rolled out or padded for the trainer.

    tokens: ``len(sample.tokens)``; rows from ``tokens - 1`` on are padding. Raises
    InvalidInputError naming sequence, field and layer.
    """
    rows = np.zeros(len(rollout_routed_experts), np.uint8)
    if tokens is not None:
        if len(rows) < tokens - 1:
            raise InvalidInputError(
                f"sequence {sequence!r}: rollout_routed_experts: expected at least {tokens - 1} "
                f"rows for {tokens} tokens, got {len(rows)}"
            )
        rows[tokens - 1 :] = Row.PADDING
    return inspect(
        sequence,
        rollout_routed_experts,
        model,
        rows=rows,
        weight_versions=weight_versions,
        field="rollout_routed_experts",
    )


def read(path: Path, model: MoeModel, advance: Advance) -> Iterator[Routing]:
    """Routings of an npz with one array for each sample, named by it, as rolled out.

    slime's own dumps are pickles and are not read; in the dump's place save
    ``np.savez(path, **{str(s.index): s.rollout_routed_experts for s in samples})``.
    """
    for sequence, array in read_arrays(path, advance):
        yield decode(sequence, array, model)
