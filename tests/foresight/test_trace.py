"""A trace is read whole or refused with one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.foresight.trace import load_trace
from tests.planner.recorded import recorded


def fields() -> dict[str, NDArray[Any]]:
    ids = np.random.default_rng(0).random((10, 3, 8)).argsort(axis=-1)[..., :2].astype(np.uint8)
    return {"experts": ids, "offsets": np.array([0, 4, 4, 10]), "num_experts": np.array(8)}


def write(path: Path, content: dict[str, NDArray[Any]]) -> Path:
    np.savez(path, **content)  # type: ignore[arg-type]
    return path


def test_histograms_count_each_sequence(tmp_path: Path) -> None:
    trace = load_trace(write(tmp_path / "trace.npz", fields()))
    assert (trace.sequences, trace.layers, trace.num_experts) == (3, 3, 8)
    histograms = trace.histograms()
    assert histograms.sum(axis=2).tolist() == [[8] * 3, [0] * 3, [12] * 3]
    second_layer = np.bincount(fields()["experts"][4:, 1].ravel(), minlength=8)
    np.testing.assert_array_equal(histograms[2, 1], second_layer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": None}, "field experts is missing"),
        ({"num_experts": None}, "field num_experts is missing"),
        ({"weights": np.zeros(3)}, "unknown field weights"),
        ({"experts": np.zeros((10, 3), np.uint8)}, "experts must be"),
        ({"experts": np.zeros((10, 0, 2), np.uint8)}, "experts must be"),
        ({"experts": np.zeros((10, 3, 2), np.float32)}, "experts must be .* got float32"),
        ({"num_experts": np.array(0)}, r"must lie in \[1, 65536\], got 0"),
        ({"num_experts": np.array(2**31)}, r"must lie in \[1, 65536\], got 2147483648"),
        ({"num_experts": np.array(8.0)}, "one integer"),
        ({"num_experts": np.array([8, 8])}, "one integer"),
        ({"offsets": np.array([0, 4, 9])}, "run from 0 to 10 tokens, got 0 to 9"),
        ({"offsets": np.array([1, 4, 10])}, "run from 0 to 10 tokens, got 1 to 10"),
        ({"offsets": np.array([0, 4, 3, 10])}, "offsets fall at sequence 1"),
        ({"offsets": np.array([0])}, "at least one sequence"),
        ({"offsets": np.array([0.0, 10.0])}, "int64"),
        ({"offsets": np.array([[0, 10]])}, "int64"),
        ({"layer_ids": np.array([0, 1], np.int32)}, r"int32 \[3\], one for each layer"),
        ({"layer_ids": np.array([0, 2, 1], np.int32)}, "number 2 is 1; sort them"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = {name: value for name, value in {**fields(), **change}.items() if value is not None}
    with pytest.raises(InvalidInputError, match=message) as error:
        load_trace(write(tmp_path / "trace.npz", content))
    assert "\n" not in str(error.value)


def test_an_unknown_expert_is_named_by_sequence_token_and_layer(tmp_path: Path) -> None:
    content = fields()
    content["experts"][6, 2, 0] = 8
    trace = load_trace(write(tmp_path / "trace.npz", content))
    with pytest.raises(
        InvalidInputError,
        match=r"trace.npz: sequence 2: expert ids: token 2, layer row 2 has expert 8",
    ):
        trace.histograms()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_an_expert_named_twice_is_told_by_sequence_token_and_layer(
    tmp_path: Path, dtype: type
) -> None:
    content = {**fields(), "layer_ids": np.array([2, 5, 9], np.int32)}
    content["experts"] = content["experts"].astype(dtype)
    content["experts"][5, 1] = 3
    trace = load_trace(write(tmp_path / "trace.npz", content))
    with pytest.raises(
        InvalidInputError,
        match=r"trace.npz: sequence 2: token 1, layer 5 names an expert twice: \[3, 3\]",
    ):
        trace.histograms()


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    content = {**fields(), "experts": np.array([{"a": 1}], dtype=object)}
    with pytest.raises(InvalidInputError, match="no npz archive of plain arrays"):
        load_trace(write(tmp_path / "trace.npz", content))


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_trace(tmp_path / "nothing.npz")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_trace(tmp_path)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(InvalidInputError, match="no npz archive"):
        load_trace(tmp_path / "text.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(InvalidInputError, match="single array"):
        load_trace(tmp_path / "array.npy")


@pytest.mark.traces
def test_the_recorded_trace_is_counted_whole() -> None:
    trace = load_trace(recorded("gpt_oss_20b.npz"))
    histograms = trace.histograms()
    assert histograms.shape == (500, 24, 32)
    assert int(histograms.sum()) == trace.experts.size
