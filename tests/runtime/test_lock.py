import os
from pathlib import Path

import pytest

from foremoe.errors import ConflictError, InvalidInputError
from foremoe.runtime.lock import hold_socket, make_private


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "private" / "s"


def test_directory_is_made_private(path: Path) -> None:
    with hold_socket(path):
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_second_holder_is_refused_by_the_pid_of_the_first(path: Path) -> None:
    with (
        hold_socket(path),
        pytest.raises(ConflictError, match=rf"another daemon \(pid {os.getpid()}\) serves {path}"),
        hold_socket(path),
    ):
        pass


def test_refused_holder_does_not_remove_the_socket(path: Path) -> None:
    with hold_socket(path):
        path.touch()
        with pytest.raises(ConflictError), hold_socket(path):
            pass
        assert path.exists()
    assert not path.exists()


def test_lock_can_be_taken_again_when_its_holder_is_gone(path: Path) -> None:
    with hold_socket(path):
        path.touch()
    with hold_socket(path):
        pass


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_directory_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(InvalidInputError, match=f"mode {mode:o}"):
        make_private(tmp_path)


def test_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInputError, match="choose another --socket"):
        make_private(tmp_path / "file" / "folder")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
def test_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(InvalidInputError, match="belongs to user 12345"):
        make_private(tmp_path)
