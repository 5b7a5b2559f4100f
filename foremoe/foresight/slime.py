"""slime (and miles), ``--use-rollout-routing-replay``.

``Sample.rollout_routed_experts`` is int32 ``[tokens - 1, layers, top_k]`` as SGLang returned it. On
its way into the trainer each sample gets a row more, and the packed micro-batch as many as its
alignment needs; those rows are ``arange(rows * layers * top_k) % num_experts``, valid ids of
nobody's tokens. ``tokens`` says where they begin; without it, rows at the end that are this very
sequence are taken for padding, if one of them has enough ids that no router chose them by chance.

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

_ENOUGH_IDS = 16


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
    ids = np.asarray(rollout_routed_experts)
    rows = np.zeros(ids.shape[:1], np.uint8)
    if tokens is None:
        if ids.ndim == 3 and ids.dtype.kind in "iu":
            rows[_padding_begins(ids, model.num_experts) :] = Row.PADDING
    elif rows.size < tokens - 1:
        raise InvalidInputError(
            f"sequence {sequence!r}: rollout_routed_experts: expected at least {tokens - 1} "
            f"rows for {tokens} tokens, got {rows.size}"
        )
    else:
        rows[tokens - 1 :] = Row.PADDING
    return inspect(
        sequence,
        ids,
        model,
        rows=rows,
        weight_versions=weight_versions,
        field="rollout_routed_experts",
    )


def _padding_begins(ids: NDArray[Any], num_experts: int) -> int:
    """The first of the rows at the end that count ``arange % num_experts``, or all the rows."""
    _, layers, top_k = ids.shape
    if layers * top_k >= _ENOUGH_IDS:
        candidates = (ids[:, 0] == np.arange(top_k) % num_experts).all(axis=1)
        for begin in np.flatnonzero(candidates).tolist():
            if _counts_up(ids[begin], num_experts) and _counts_up(ids[begin:], num_experts):
                return int(begin)
    return len(ids)


def _counts_up(ids: NDArray[Any], num_experts: int) -> bool:
    return np.array_equal(ids.ravel(), np.arange(ids.size) % num_experts)


def read(path: Path, model: MoeModel, advance: Advance) -> Iterator[Routing]:
    """Routings of an npz with one array for each sample, named by it.

    slime's own dumps are pickles and are not read; in the dump's place save
    ``np.savez(path, **{str(s.index): s.rollout_routed_experts for s in samples})``.
    """
    for sequence, array in read_arrays(path, advance):
        yield decode(sequence, array, model)
