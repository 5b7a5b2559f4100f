import errno
import os
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foremoe.errors import (
    ExhaustedError,
    InvalidInputError,
    StaleGenerationError,
    TransferError,
    UnavailableError,
)
from foremoe.transfer.host_cache import HostExpertCache
from foremoe.transfer.slab import SlabLayout, aligned_buffer
from tests.processes import _context as _processes
from tests.transfer.toy_group import EXPERTS, LAYERS, layout, true_weights

SLAB = layout()


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[HostExpertCache]:
    created = HostExpertCache.create(tmp_path, LAYERS, EXPERTS, SLAB, 2)
    yield created
    created.close()


@pytest.mark.parametrize("makes", [True, False])
def test_without_address_space_nothing_is_left_behind(
    makes: bool, tmp_path: Path, cache: HostExpertCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    files, descriptors = sorted(tmp_path.iterdir()), len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("foremoe.transfer.cache_file.mmap.mmap", full)
    use = partial(HostExpertCache.create, local_ranks=2) if makes else HostExpertCache.attach
    error = ExhaustedError if makes else UnavailableError
    with pytest.raises(error, match=r"cannot map .*: Cannot allocate memory"):
        use(tmp_path if makes else cache.path, LAYERS, EXPERTS, SLAB)
    assert sorted(tmp_path.iterdir()) == files
    assert len(os.listdir("/proc/self/fd")) == descriptors


def _attach(cache: HostExpertCache) -> HostExpertCache:
    return HostExpertCache.attach(cache.path, LAYERS, EXPERTS, SLAB)


def _assert_reads(cache: HostExpertCache, layer: int, expert: int, generation: int) -> None:
    out = aligned_buffer(SLAB.nbytes)
    cache.read(layer, expert, generation, out.numpy())
    truth = true_weights(generation, layer, expert, SLAB)
    for name, view in SLAB.views(out).items():
        assert torch.equal(view, truth[name])


def test_what_one_writes_the_other_reads_even_after_the_name_is_gone(
    cache: HostExpertCache, tmp_path: Path
) -> None:
    other = _attach(cache)
    cache.unlink()
    assert list(tmp_path.iterdir()) == []
    for layer in LAYERS:
        for expert in range(EXPERTS):
            cache.write(layer, expert, true_weights(4, layer, expert, SLAB), 4)
    for layer in LAYERS:
        for expert in range(EXPERTS):
            _assert_reads(other, layer, expert, 4)
    other.close()


def test_another_generation_is_refused(cache: HostExpertCache) -> None:
    out = aligned_buffer(SLAB.nbytes)
    with pytest.raises(StaleGenerationError, match=r"layer 5 expert 2 holds generation 0"):
        cache.read(5, 2, 1, out.numpy())
    cache.write(5, 2, true_weights(1, 5, 2, SLAB), 1)
    _assert_reads(cache, 5, 2, 1)
    for wrong in (0, 2):
        with pytest.raises(StaleGenerationError, match="holds generation 1"):
            cache.read(5, 2, wrong, out.numpy())


class _Intruder(np.ndarray):
    """A read target that lets the writer in before it is copied to, as an unlucky reader would."""

    write: Callable[[], None]

    def __array_function__(self, *call: Any) -> Any:
        self.write()
        return super().__array_function__(*call)


def test_a_write_during_the_read_is_noticed(cache: HostExpertCache) -> None:
    cache.write(3, 0, true_weights(1, 3, 0, SLAB), 1)
    out = np.empty(SLAB.nbytes, np.uint8).view(_Intruder)
    out.write = lambda: cache.write(3, 0, true_weights(2, 3, 0, SLAB), 2)
    with pytest.raises(StaleGenerationError, match="holds generation 2"):
        cache.read(3, 0, 1, out)


def test_a_half_written_expert_is_refused(
    cache: HostExpertCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_meanwhile(*_: object) -> None:
        cache.read(3, 0, 2, np.empty(SLAB.nbytes, np.uint8))

    monkeypatch.setattr(SlabLayout, "pack", read_meanwhile)
    with pytest.raises(StaleGenerationError, match="is being written"):
        cache.write(3, 0, true_weights(2, 3, 0, SLAB), 2)


def test_after_homes_moved_an_entry_of_another_expert_is_refused(cache: HostExpertCache) -> None:
    cache.write(3, 0, true_weights(1, 3, 0, SLAB), 1)
    cache.serve([[7, 6, 5, 4, 3, 2, 1, 0]] * len(LAYERS))
    with pytest.raises(StaleGenerationError, match=r"expert 7 holds generation 1 \(expert 0\)"):
        cache.read(3, 7, 1, np.empty(SLAB.nbytes, np.uint8))
    with pytest.raises(InvalidInputError, match="was made for 8"):
        cache.serve([range(9)] * len(LAYERS))
    cache.serve([[7]] * len(LAYERS))
    with pytest.raises(InvalidInputError, match="layer 3 expert 0 is not on this node"):
        cache.read(3, 0, 1, np.empty(SLAB.nbytes, np.uint8))


def test_files_of_other_programs_versions_and_sizes_are_refused(
    cache: HostExpertCache, tmp_path: Path
) -> None:
    def altered(name: str, offset: int, patch: bytes, cut: int | None = None) -> Path:
        content = bytearray(cache.path.read_bytes())[:cut]
        content[offset : offset + len(patch)] = patch
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    for path, message in [
        (altered("magic", 0, b"X"), "is not a host cache file"),
        (altered("empty", 0, b"", 0), "is not a host cache file"),
        (altered("version", 8, b"\x02"), "format version 2, this program reads 1"),
        (altered("cut", 0, b"", -4096), "its header says"),
        (altered("head", 0, b"", 50), "is cut off"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            HostExpertCache.attach(path, LAYERS, EXPERTS, SLAB)
    for layers, capacity, slab in [
        ((3, 5), EXPERTS, SLAB),
        ((3, 5, 8), EXPERTS, SLAB),
        (LAYERS, 4, SLAB),
        (LAYERS, EXPERTS, SlabLayout.from_shapes({"up": (64, 64)}, torch.float32)),
    ]:
        with pytest.raises(InvalidInputError, match="expected CacheShape"):
            HostExpertCache.attach(cache.path, layers, capacity, slab)
    with pytest.raises(UnavailableError, match="No such file"):
        HostExpertCache.attach(tmp_path / "gone", LAYERS, EXPERTS, SLAB)


def test_another_group_starting_in_the_directory_leaves_a_living_cache_alone(
    cache: HostExpertCache, tmp_path: Path
) -> None:
    HostExpertCache.create(tmp_path, LAYERS, EXPERTS, SLAB, 2).close()
    _attach(cache).close()


def test_the_byte_limit_is_honoured(tmp_path: Path, cache: HostExpertCache) -> None:
    HostExpertCache.create(tmp_path, LAYERS, EXPERTS, SLAB, 2, cache.nbytes).close()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ExhaustedError, match=f"needs {cache.nbytes} bytes but its limit is"):
        HostExpertCache.create(tmp_path, LAYERS, EXPERTS, SLAB, 2, cache.nbytes - 1)
    for unusable in (tmp_path / "nowhere", Path("/proc")):  # no file can be made in the latter
        with pytest.raises(UnavailableError, match="name a directory on a tmpfs"):
            HostExpertCache.create(unusable, LAYERS, EXPERTS, SLAB, 2)
    assert set(tmp_path.iterdir()) <= set(before)


def _create_with_file_limit(directory: Path, answer: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
    try:
        HostExpertCache.create(directory, LAYERS, EXPERTS, SLAB, 2)
    except ExhaustedError as error:
        answer.send(str(error))


def test_no_room_is_an_error_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    here, there = _processes.Pipe()
    process = _processes.Process(target=_create_with_file_limit, args=(tmp_path, there))
    process.start()
    assert here.poll(30)
    assert "enlarge the tmpfs" in here.recv()
    process.join()
    assert list(tmp_path.iterdir()) == []


def test_a_full_tmpfs_is_an_error_that_names_sizes(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        with pytest.raises(ExhaustedError, match=r"needs \d+ bytes in .*, 65536 are free \(No sp"):
            HostExpertCache.create(tmp_path, LAYERS, EXPERTS, SLAB, 2)
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def _hold_cache(directory: Path, path: Path | None, unlink: bool, answer: Connection) -> None:
    if path is None:
        cache = HostExpertCache.create(directory, LAYERS, EXPERTS, SLAB, 2)
    else:
        cache = HostExpertCache.attach(path, LAYERS, EXPERTS, SLAB)
    if unlink:
        cache.unlink()
    answer.send(cache.path)
    signal.pause()


def _start_holder(directory: Path, path: Path | None, unlink: bool) -> tuple[BaseProcess, Path]:
    here, there = _processes.Pipe()
    process = _processes.Process(target=_hold_cache, args=(directory, path, unlink, there))
    process.start()
    assert here.poll(30)
    return process, here.recv()


def test_kill_9_leaves_nothing_once_the_name_is_gone(tmp_path: Path) -> None:
    creator, path = _start_holder(tmp_path, None, False)
    reader, _ = _start_holder(tmp_path, path, True)
    _kill(creator)
    _kill(reader)
    assert list(tmp_path.iterdir()) == []


def test_kill_9_before_the_name_is_gone_is_cleaned_up_by_the_next_start(tmp_path: Path) -> None:
    creator, path = _start_holder(tmp_path, None, False)
    reader, _ = _start_holder(tmp_path, path, False)
    _kill(creator)
    HostExpertCache.create(tmp_path, LAYERS, EXPERTS, SLAB, 2).unlink()
    assert path.exists(), "a rank still uses it"
    _kill(reader)
    HostExpertCache.create(tmp_path, LAYERS, EXPERTS, SLAB, 2).unlink()
    assert list(tmp_path.iterdir()) == []


def _kill(process: BaseProcess) -> None:
    process.kill()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL


def test_memory_outlives_close_while_a_tensor_views_it(tmp_path: Path) -> None:
    cache = HostExpertCache.create(tmp_path, LAYERS, EXPERTS, SLAB, 1)
    slab = cache._slabs[0, 0]
    cache.close()
    assert int(slab.sum()) == 0, "reading must not crash"


def test_progress_of_the_node_is_awaited_with_a_deadline(cache: HostExpertCache) -> None:
    other = _attach(cache)
    with pytest.raises(TransferError, match=r"local ranks \[1\] did not follow within 0.05 s"):
        cache.meet(0, 3, 0.05)
    follower = threading.Thread(target=other.meet, args=(1, 3, 30))
    follower.start()
    cache.meet(0, 3, 30)
    follower.join()
    other.close()
