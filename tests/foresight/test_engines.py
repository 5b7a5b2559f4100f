"""vLLM's and SGLang's responses, encoded here as the engines encode them."""

import base64
import contextlib
import io
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.foresight import sglang, vllm
from foremoe.foresight.model import MoeModel
from tests.foresight.routes import MODEL, all_layers, models, routes


def vllm_array(ids: NDArray[np.int32], model: MoeModel = MODEL) -> NDArray[Any]:
    """As RoutedExpertsCapturer: the narrowest type, every decoder layer, dense ones zero."""
    return all_layers(ids, model).astype(np.uint8 if model.num_experts <= 256 else np.uint16)


def vllm_text(array: NDArray[Any]) -> str:
    """As vllm.utils.serial_utils.numpy2base64: the base64 of np.save's bytes."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def sglang_text(ids: NDArray[np.int32], model: MoeModel = MODEL) -> str:
    """As SGLang's detokenizer: the base64 of the int32 buffer, nothing else."""
    return base64.b64encode(all_layers(ids, model).astype("<i4").tobytes()).decode("ascii")


def test_vllm_golden() -> None:
    """The header of numpy's .npy format 1.0 by hand, and two rows of bytes."""
    model = MoeModel(num_experts=8, top_k=2, num_layers=2, layers=(1,))
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (2, 2, 2), }"
    header += b" " * (128 - 10 - 1 - len(header)) + b"\n"
    npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    npy += bytes([0, 0, 3, 5, 0, 0, 7, 1])
    routing = vllm.decode("a", base64.b64encode(npy).decode(), model, tokens=3)
    assert routing.layers == (1,)
    assert routing.ids.tolist() == [[[3, 5]], [[7, 1]]]
    assert routing.faults == ()


def test_sglang_golden() -> None:
    """Little-endian int32, [2 rows, 2 layers, top_k 2], for 3 tokens."""
    model = MoeModel(num_experts=300, top_k=2, num_layers=2, layers=(0, 1))
    data = bytes.fromhex("03000000050000002a01000000000000 07000000010000000200000009000000")
    routing = sglang.decode("a", base64.b64encode(data).decode(), model, tokens=3)
    assert routing.ids.tolist() == [[[3, 5], [298, 0]], [[7, 1], [2, 9]]]


@settings(max_examples=40, deadline=None)
@given(models(), st.integers(1, 9), st.integers(0, 5))
def test_round_trips(model: MoeModel, tokens: int, start: int) -> None:
    ids = routes(tokens, model)
    options = {"tokens": start + tokens + 1, "start": start}
    for routing in (
        vllm.decode("a", vllm_text(vllm_array(ids, model)), model, **options),
        vllm.decode_array("a", vllm_array(ids, model), model, **options),
        sglang.decode("a", sglang_text(ids, model), model, **options),
        sglang.decode_array("a", all_layers(ids, model).reshape(tokens, -1), model, **options),
    ):
        np.testing.assert_array_equal(routing.ids, ids)
        assert (routing.layers, routing.start, routing.present) == (model.layers, start, tokens)
        assert routing.faults == ()


def test_old_vllm_halves_concatenate() -> None:
    """vLLM 0.21: routed_experts of prompt and generation apart, int16, layers that route."""
    ids = routes(7).astype(np.int16)
    both = np.concatenate([ids[:4], ids[4:]])
    np.testing.assert_array_equal(vllm.decode_array("a", both, MODEL).ids, ids)


def npz() -> str:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(1))
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("%%%", {}, "is no base64"),
        (None, {}, "expected a base64 string, got NoneType"),
        (base64.b64encode(b"hello").decode(), {}, r"is no \.npy"),
        (vllm_text(np.array([{}], object)), {}, r"is no \.npy of a plain array"),
        (npz(), {}, "is an npz archive"),
        (vllm_text(np.zeros(4, np.uint8)), {}, r"\[tokens, layers, top_k\], got \[4\]"),
        (vllm_text(vllm_array(routes(5))), {"tokens": 5}, "expected 4 rows for 5 tokens"),
        (vllm_text(vllm_array(routes(5))), {"tokens": 6, "start": 2}, "expected 3 rows .* got 5"),
        (vllm_text(vllm_array(routes(5) + 20)), {}, r"layer 1 has expert \d+"),
    ],
)
def test_bad_vllm_payloads_are_refused(text: Any, options: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as error:
        vllm.decode("a", text, MODEL, **options)
    assert str(error.value).startswith("sequence 'a': routed_experts: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("%%%", {}, "is no base64"),
        (base64.b64encode(bytes(100)).decode(), {}, r"100 bytes are no whole rows of int32 \[4, 4"),
        (sglang_text(routes(5)), {"tokens": 9}, "expected 8 rows for 9 tokens"),
        (sglang_text(routes(5) + 20), {}, r"layer 1 has expert \d+"),
    ],
)
def test_bad_sglang_payloads_are_refused(text: Any, options: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as error:
        sglang.decode("a", text, MODEL, **options)
    assert str(error.value).startswith("sequence 'a': meta_info.routed_experts: ")


def test_a_pickled_npy_is_never_loaded() -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("unpickled",))

    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()], object), allow_pickle=True)
    text = base64.b64encode(buffer.getvalue()).decode()
    with pytest.raises(InvalidInputError, match=r"is no \.npy of a plain array"):
        vllm.decode("a", text, MODEL)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_changed_npy_is_routing_or_refused(data: st.DataObject) -> None:
    content = bytearray(base64.b64decode(vllm_text(vllm_array(routes(2)))))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InvalidInputError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns of headers it still reads
        vllm.decode("a", base64.b64encode(content).decode(), MODEL)
