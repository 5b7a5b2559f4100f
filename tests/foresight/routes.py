"""Routing as routers choose it: different experts for each token of each layer."""

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from foremoe.foresight.model import MoeModel

# As DeepSeek-V3 in small: the first decoder layer is dense.
MODEL = MoeModel(num_experts=16, top_k=4, num_layers=4, layers=(1, 2, 3))


def routes(tokens: int, model: MoeModel = MODEL, seed: int = 0) -> NDArray[np.int32]:
    """Ids int32 ``[tokens, routing layers, top_k]``, no expert twice in a row."""
    shape = (tokens, len(model.layers), model.num_experts)
    order = np.random.default_rng(seed).random(shape).argsort(axis=-1)
    return order[..., : model.top_k].astype(np.int32)


def all_layers(ids: NDArray[Any], model: MoeModel = MODEL) -> NDArray[Any]:
    """The same on an axis of all decoder layers, dense ones zero, as engines capture it."""
    full = np.zeros((len(ids), model.num_layers, model.top_k), ids.dtype)
    full[:, list(model.layers)] = ids
    return full


@st.composite
def models(draw: Callable[[st.SearchStrategy[Any]], Any]) -> MoeModel:
    """Small and large expert counts, any layers dense."""
    num_experts = draw(st.sampled_from([4, 16, 200, 256, 257, 300, 1000]))
    num_layers = draw(st.integers(1, 5))
    layers = draw(st.sets(st.integers(0, num_layers - 1), min_size=1))
    return MoeModel(num_experts, draw(st.integers(2, 4)), num_layers, tuple(sorted(layers)))
