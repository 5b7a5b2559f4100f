"""MOE-Patch's counts of tokens per expert.

JSONL, one object for each (iteration, rank, layer): ``{"iteration": 1200, "rank": 0, "layer":
"layer_6", "num_experts": 4, "top_k": 2, "tokens": 2048, "actual_assignments": [800, 965, ...]}``,
where ``actual_assignments`` counts the pairs of each expert and sums to ``tokens * top_k``. There
are no sequences and no tokens: a *sequence* here is what one rank routed in one iteration, named
``rank/iteration``. Its ids are made up so that each layer has the counts that were recorded and no
token has an expert twice; which tokens share experts is not known.

Source: README.md and src/patch of https://github.com/direction-yxf/moe_patch.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.foresight.inspection import MOST_TOKENS, inspect
from foremoe.foresight.model import MoeModel
from foremoe.foresight.recording import Advance, Record, read_records
from foremoe.foresight.routing import Routing
from foremoe.limits import check_range


def decode(name: str, records: list[Record]) -> Routing:
    """One rank's iteration from its layers' records.

    Raises InvalidInputError naming the record when counts, tokens and top_k disagree.
    """
    by_layer = {_layer(record): record for record in records}
    if len(by_layer) < len(records):
        raise InvalidInputError(f"sequence {name!r}: a layer is recorded twice")
    layers = tuple(sorted(by_layer))
    first = by_layer[layers[0]]
    sizes = [first.integer(size) for size in ("num_experts", "top_k", "tokens")]
    for record in by_layer.values():
        if [record.integer(size) for size in ("num_experts", "top_k", "tokens")] != sizes:
            raise InvalidInputError(
                f"{record.where}: num_experts, top_k and tokens differ from those of "
                f"{first.where}, {sizes}"
            )
    num_experts, top_k, tokens = sizes
    check_range(tokens, 0, MOST_TOKENS, f"{first.where}: tokens")
    model = MoeModel(num_experts, top_k, layers[-1] + 1, layers)
    ids = [spread(_counts(by_layer[layer], *sizes), tokens, top_k) for layer in layers]
    return inspect(name, np.stack(ids, axis=1), model, field="actual_assignments")


def read(path: Path, advance: Advance) -> Iterator[Routing]:
    """Routings of a JSONL file, one for each (rank, iteration)."""
    groups: dict[tuple[int, int], list[Record]] = {}
    for record in read_records(path, advance):
        key = (record.integer("rank"), record.integer("iteration"))
        groups.setdefault(key, []).append(record)
    for (rank, iteration), records in groups.items():
        yield decode(f"{path}:{rank}/{iteration}", records)


def spread(counts: NDArray[np.int64], tokens: int, top_k: int) -> NDArray[np.int32]:
    """Ids int32 ``[tokens, top_k]`` that count to ``counts [E]``, none twice in a row.

    McNaughton's wrap-around rule: experts one after another down the columns; one with at most
    ``tokens`` pairs never meets itself in a row.
    """
    experts = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return np.ascontiguousarray(experts.reshape(top_k, tokens).T)


def _layer(record: Record) -> int:
    """The last number in the layer's name."""
    numbers = re.findall(r"\d+", str(record.content.get("layer")))
    if not numbers:
        raise InvalidInputError(
            f"{record.where}: layer: expected a name like layer_6, "
            f"got {record.content.get('layer')!r}"
        )
    return int(numbers[-1])


def _counts(record: Record, num_experts: int, top_k: int, tokens: int) -> NDArray[np.int64]:
    counts: Any = record.content.get("actual_assignments")
    if not isinstance(counts, list) or not all(type(count) is int for count in counts):
        raise InvalidInputError(f"{record.where}: actual_assignments: expected integers")
    if len(counts) != num_experts or min(counts) < 0 or max(counts) > tokens:
        raise InvalidInputError(
            f"{record.where}: actual_assignments: expected {num_experts} counts from 0 to tokens"
        )
    if sum(counts) != tokens * top_k:
        raise InvalidInputError(
            f"{record.where}: actual_assignments: counts {sum(counts)} pairs, but {tokens} tokens "
            f"with top_k {top_k} make {tokens * top_k}"
        )
    return np.array(counts, np.int64)
