import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foremoe.errors import InvalidInputError
from foremoe.transfer.slab import SlabLayout, aligned_buffer

shapes = st.dictionaries(
    st.text("abc", min_size=1), st.lists(st.integers(1, 9), max_size=3).map(tuple), min_size=1
)
dtypes = st.sampled_from([torch.bfloat16, torch.float32, torch.float64, torch.uint8])


@given(shapes, dtypes)
def test_tensors_are_aligned_apart_and_come_back_exactly(
    drawn: dict[str, tuple[int, ...]], dtype: torch.dtype
) -> None:
    layout = SlabLayout.from_shapes(drawn, dtype)
    assert layout.nbytes % 4096 == 0
    assert all(place.offset % 64 == 0 for place in layout.places)
    ends = [0] + [place.offset + place.nbytes for place in layout.places]
    assert all(place.offset >= end for place, end in zip(layout.places, ends, strict=False))
    tensors = {name: torch.randint(0, 100, shape).to(dtype) for name, shape in drawn.items()}
    slab = aligned_buffer(layout.nbytes)
    layout.pack(tensors, slab)
    for name, view in layout.views(slab).items():
        assert view.shape == tensors[name].shape
        assert torch.equal(view, tensors[name])
        assert view.untyped_storage().data_ptr() == slab.untyped_storage().data_ptr()


def test_gradients_are_wide() -> None:
    layout = SlabLayout.from_shapes({"up": (3, 5)}, torch.bfloat16)
    assert layout.gradient_layout().dtype == torch.float32
    assert layout.with_dtype(torch.float64).gradient_layout().dtype == torch.float64
    assert layout.payload_bytes == 30


def test_buffers_start_on_a_page() -> None:
    assert all(aligned_buffer(n).data_ptr() % 4096 == 0 for n in (1, 4096, 12345))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"up": torch.zeros(2, 3)}, "expected the tensors"),
        ({"up": torch.zeros(3, 2), "down": torch.zeros(4)}, "'up' must be"),
        ({"up": torch.zeros(2, 3).double(), "down": torch.zeros(4)}, "'up' must be"),
    ],
)
def test_tensors_that_do_not_fit_change_nothing(
    tensors: dict[str, torch.Tensor], message: str
) -> None:
    layout = SlabLayout.from_shapes({"up": (2, 3), "down": (4,)}, torch.float32)
    slab = torch.full((layout.nbytes,), 7, dtype=torch.uint8)
    with pytest.raises(InvalidInputError, match=message):
        layout.pack(tensors, slab)
    assert (slab == 7).all()


def test_an_expert_without_elements_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no elements"):
        SlabLayout.from_shapes({"up": (2, 0)}, torch.float32)
    with pytest.raises(InvalidInputError, match="at least one tensor"):
        SlabLayout.from_shapes({}, torch.float32)
