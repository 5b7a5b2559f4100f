"""What RL trainers carry, encoded here as each of them pads and packs it."""

import base64
import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.foresight import nemo_rl, prime_rl, sglang, skyrl, slime, verl, vllm
from foremoe.foresight.model import MoeModel
from foremoe.foresight.routing import FaultKind, Row
from tests.foresight.routes import MODEL, all_layers, models, routes


def verl_batch(prompt: int, response: int) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """As the agent loop's _postprocess: zeros, filled from the first token of the prompt on.

    Prompts are padded to 6 on the left, responses to 8 on the right; of prompt + response tokens
    all but the last have routes.
    """
    ids = all_layers(routes(prompt + response - 1)).astype(np.int16)
    routed_experts = np.zeros((14, *ids.shape[1:]), np.int16)
    routed_experts[6 - prompt : 6 - prompt + len(ids)] = ids
    mask = np.zeros(14, np.int64)
    mask[6 - prompt : 6 + response] = 1
    return routed_experts, mask


@pytest.mark.parametrize(("prompt", "response"), [(1, 1), (4, 5), (6, 8)])
def test_verl_padding_and_the_last_token_do_not_count(prompt: int, response: int) -> None:
    routed_experts, mask = verl_batch(prompt, response)
    (routing,) = verl.decode_batch(["a"], routed_experts[None], mask[None], MODEL)
    assert routing.faults == ()
    assert routing.present == prompt + response - 1
    assert np.count_nonzero(routing.rows == Row.PADDING) == 14 - prompt - response
    assert np.flatnonzero(routing.rows == Row.MISSING).tolist() == [6 + response - 1]
    np.testing.assert_array_equal(routing.present_ids(), routes(prompt + response - 1))


def test_verl_zero_rows_inside_are_a_fault() -> None:
    routed_experts, mask = verl_batch(4, 5)
    routed_experts[7:9] = 0
    routing = verl.decode("a", routed_experts, mask, MODEL)
    assert [(f.kind, f.rows) for f in routing.faults] == [(FaultKind.ROWS_NOT_CAPTURED, 2)]
    assert routing.present == 4 + 5 - 1 - 2


def slime_padded(ids: NDArray[np.int32], rows: int, num_experts: int) -> NDArray[np.int32]:
    """As _pad_routed_experts: arange % num_experts for rows that nobody chose."""
    values = np.arange(rows * ids.shape[1] * ids.shape[2], dtype=np.int32) % num_experts
    return np.concatenate([ids, values.reshape(rows, *ids.shape[1:])])


@pytest.mark.parametrize("padding", [0, 1, 5])
def test_slime_padding_is_known_by_the_tokens(padding: int) -> None:
    ids = routes(9)
    padded = slime_padded(all_layers(ids), padding, MODEL.num_experts)
    routing = slime.decode("a", padded, MODEL, tokens=10)
    assert routing.faults == ()
    assert routing.present == 9
    np.testing.assert_array_equal(routing.present_ids(), ids)


def nemo_text(ids: NDArray[Any]) -> str:
    """As encode_routed_experts: nrlre1:<dtype>:<S>x<L>x<K>:<base64>."""
    shape = "x".join(map(str, ids.shape))
    return f"nrlre1:{ids.dtype.name}:{shape}:{base64.b64encode(ids.tobytes()).decode('ascii')}"


def test_nemo_rl_golden() -> None:
    """The envelope that NeMo-Gym's tests carry: int16 [2, 1, 2] of 0 to 3."""
    model = MoeModel(4, 2, 1, (0,))
    routing = nemo_rl.decode("a", "nrlre1:int16:2x1x2:AAABAAIAAwA=", model)
    assert routing.ids.tolist() == [[[0, 1]], [[2, 3]]]


def test_nemo_rl_sentinel_rows_are_missing_without_fault() -> None:
    for dtype in (np.int8, np.int16, np.int32):
        ids = routes(6).astype(dtype)
        ids[4:] = -1  # an environment's tokens and the last one
        routing = nemo_rl.decode("a", nemo_text(ids), MODEL)
        assert routing.rows.tolist() == [0, 0, 0, 0, Row.MISSING, Row.MISSING]
        assert routing.faults == ()
        np.testing.assert_array_equal(routing.present_ids(), ids[:4])


def test_nemo_rl_nested_lists_are_read_too() -> None:
    ids = routes(3)
    np.testing.assert_array_equal(nemo_rl.decode("a", ids.tolist(), MODEL).ids, ids)


def skyrl_batch(lengths: list[int]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """As convert_prompts_responses_to_batch_tensors: left padding, dummy rows arange(top_k)."""
    longest = max(lengths)
    indices = np.zeros((len(lengths), longest, len(MODEL.layers), MODEL.top_k), np.uint8)
    indices[:] = np.arange(MODEL.top_k)
    padding = np.ones((len(lengths), longest), bool)
    for index, length in enumerate(lengths):
        rows = slice(longest - length, longest - 1)  # no route for the last token
        indices[index, rows] = routes(length - 1, seed=index)
        padding[index, rows] = False
    return indices, padding


def test_skyrl_dummy_routes_do_not_count() -> None:
    indices, padding = skyrl_batch([3, 7, 5])
    for index, routing in enumerate(skyrl.decode_batch(["a", "b", "c"], indices, padding, MODEL)):
        assert routing.sequence == "abc"[index]
        assert routing.faults == ()
        expected = routes([2, 6, 4][index], seed=index)
        np.testing.assert_array_equal(routing.present_ids(), expected)


def wire(ids: NDArray[Any], **more: Any) -> dict[str, Any]:
    """SkyRL's and prime-rl's envelope over HTTP."""
    data = base64.b64encode(ids.tobytes()).decode("ascii")
    return {"data": data, "shape": list(ids.shape), "dtype": ids.dtype.name, **more}


def test_prime_rl_zero_bytes_at_the_end_are_padding() -> None:
    ids = all_layers(routes(6)).astype(np.uint8)
    payload = wire(np.concatenate([ids, np.zeros((3, *ids.shape[1:]), np.uint8)]), start=4)
    for data in (payload["data"], base64.b64decode(payload["data"])):  # HTTP, msgpack
        routing = prime_rl.decode("a", {**payload, "data": data}, MODEL)
        assert routing.rows.tolist() == [0] * 6 + [Row.PADDING] * 3
        assert (routing.start, routing.faults) == (4, ())


def test_tensors_are_read_as_arrays_are() -> None:
    """As verl's and SkyRL's batches, NeMo-RL's messages and SGLang's Python engine hold them."""
    ids = routes(5)
    whole, mask = torch.from_numpy(all_layers(ids)), torch.ones(1, 5, dtype=torch.int64)
    for routing in (
        vllm.decode_array("a", whole.byte(), MODEL, tokens=6),
        sglang.decode_array("a", whole.reshape(5, -1), MODEL, tokens=6),
        slime.decode("a", whole, MODEL),
        verl.decode("a", whole.short(), mask[0], MODEL),
        nemo_rl.decode("a", whole.char(), MODEL),
        *verl.decode_batch(["a"], whole[None].short(), mask, MODEL),
        *skyrl.decode_batch(["a"], whole[None], mask < 1, MODEL),
    ):
        np.testing.assert_array_equal(routing.present_ids(), ids)


def test_prime_rl_zero_bytes_alone_are_a_fault() -> None:
    routing = prime_rl.decode("a", wire(np.zeros((5, 4, 4), np.uint8)), MODEL)
    assert [fault.kind for fault in routing.faults] == [FaultKind.NOTHING_CAPTURED]


@settings(max_examples=40, deadline=None)
@given(models(), st.integers(1, 9), st.data())
def test_round_trips(model: MoeModel, tokens: int, data: st.DataObject) -> None:
    ids = routes(tokens, model)
    dtype = data.draw(st.sampled_from(["int16", "int32"] + ["uint8"] * (model.num_experts <= 256)))
    layers = data.draw(st.sampled_from([ids, all_layers(ids, model)]))
    signed = layers.astype("int16" if dtype == "uint8" else dtype)
    for routing in (
        nemo_rl.decode("a", nemo_text(signed), model),
        skyrl.decode("a", wire(layers.astype(dtype)), model),
        prime_rl.decode("a", wire(layers.astype(dtype)), model),
        slime.decode("a", layers, model),
        verl.decode("a", signed, np.ones(tokens), model),
    ):
        np.testing.assert_array_equal(routing.ids, ids)
        assert routing.present == tokens
        assert routing.layers == model.layers


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        (lambda: nemo_rl.decode("a", "nrlre2:int16:1x1x1:AAA=", MODEL), "expected nrlre1:<dtype>"),
        (lambda: nemo_rl.decode("a", "nrlre1:int16:1x1x1", MODEL), "expected nrlre1:<dtype>"),
        (lambda: nemo_rl.decode("a", "nrlre1:int64:1x1x1:AA==", MODEL), "dtype: expected int8 or"),
        (lambda: nemo_rl.decode("a", "nrlre1:int16:1x-1:AA==", MODEL), "shape: expected"),
        (lambda: nemo_rl.decode("a", "nrlre1:int16:2x3x4:AA==", MODEL), "takes 48 bytes, got 1"),
        (lambda: nemo_rl.decode("a", [[[1, 2], [3]]], MODEL), "integers of 32 bits nested as"),
        (lambda: nemo_rl.decode("a", 7, MODEL), "an nrlre1 string or a nested list"),
        (lambda: skyrl.decode("a", "AAAA", MODEL), "expected an object with data, dtype and shape"),
        (lambda: skyrl.decode("a", {"data": "", "dtype": "uint8"}, MODEL), "shape: is missing"),
        (lambda: skyrl.decode("a", wire(routes(2).astype("u2")), MODEL), "got 'uint16'"),
        (
            lambda: prime_rl.decode("a", wire(routes(2), start=-1), MODEL),
            "start must lie in",
        ),
        (lambda: prime_rl.decode("a", wire(routes(2), start="x"), MODEL), "start: expected an int"),
        (lambda: slime.decode("a", routes(4), MODEL, tokens=9), "at least 8 rows for 9 tokens"),
        (
            lambda: slime.decode("a", np.zeros((4, 4, 16), [("ids", "i4")]), MODEL),
            r"expected integers of at most 32 bits .* got \[\('ids', '<i4'\)\]",
        ),
        (lambda: verl.decode("a", routes(4), np.ones(3), MODEL), r"its attention_mask \[3\]"),
        (lambda: verl.decode("a", routes(3), np.ones(4), MODEL), r"its attention_mask \[4\]"),
        (
            lambda: list(verl.decode_batch(["a"], routes(4), np.ones((1, 4)), MODEL)),
            r"expected \[batch, length, layers, top_k\]",
        ),
        (lambda: verl.decode("a", routes(4) + 15, np.ones(4), MODEL), r"layer 1 has expert \d+"),
    ],
)
def test_bad_payloads_are_refused(decode: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as error:
        decode()
    assert "\n" not in str(error.value)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text("nrle1:intx0149AQ=", max_size=40),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["data", "dtype", "shape", "start", "a"]), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(_JSON)
def test_any_json_is_routing_or_refused(payload: Any) -> None:
    for carrier in (nemo_rl, skyrl, prime_rl):
        with contextlib.suppress(InvalidInputError):
            carrier.decode("a", payload, MODEL)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_changed_envelope_is_routing_or_refused(data: st.DataObject) -> None:
    text = nemo_text(routes(2).astype(np.int16))
    place = data.draw(st.integers(0, len(text)))
    changed = text[:place] + data.draw(st.text(max_size=3)) + text[place + 1 :]
    with contextlib.suppress(InvalidInputError):
        nemo_rl.decode("a", changed, MODEL)
