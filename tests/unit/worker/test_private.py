"""A folder is taken only if no other user can change any part of its path."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_worker.private import UnsafeFolder, check_folder, is_ours, new_folder, own_folder

ROOT_ONLY = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
SOMEBODY = 54321


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def lax() -> Iterator[None]:
    """Leave all that is made to everybody; pytest's own folders are private."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("lax")
@pytest.mark.parametrize("make", [own_folder, lambda path: new_folder(path, "a-")])
def test_a_made_folder_is_private_whatever_the_umask(tmp_path: Path, make: object) -> None:
    assert callable(make)
    made = make(tmp_path / "new" / "folder")
    assert mode(made) == 0o700
    assert is_ours(made)


def test_two_new_folders_differ_in_name(tmp_path: Path) -> None:
    assert new_folder(tmp_path, "a-") != new_folder(tmp_path, "a-")


def test_an_own_folder_is_reused_and_made_private(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir(0o755)
    (tmp_path / "own" / "kept").touch()
    assert own_folder(tmp_path / "own") == tmp_path / "own"
    assert mode(tmp_path / "own") == 0o700
    assert (tmp_path / "own" / "kept").exists()


@pytest.mark.parametrize("bits", [0o720, 0o702, 0o777])
def test_a_folder_into_which_others_may_write_is_refused_wherever_it_is(
    tmp_path: Path, bits: int
) -> None:
    (tmp_path / "open" / "below").mkdir(parents=True)
    (tmp_path / "open").chmod(bits)
    for path in (tmp_path / "open", tmp_path / "open" / "below", tmp_path / "open" / "new"):
        with pytest.raises(UnsafeFolder, match=rf"other users can change .*open' \(mode 0{bits:o}"):
            own_folder(path)
    with pytest.raises(UnsafeFolder):
        new_folder(tmp_path / "open", "a-")


def test_a_sticky_folder_is_safe_above_and_not_as_the_folder_itself(tmp_path: Path) -> None:
    (tmp_path / "sticky").mkdir()
    (tmp_path / "sticky").chmod(0o1777)
    check_folder(new_folder(tmp_path / "sticky", "a-"))
    own_folder(tmp_path / "sticky" / "own")
    with pytest.raises(UnsafeFolder):
        own_folder(tmp_path / "sticky")


def test_a_link_counts_as_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open" / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "open" / "real")
    with pytest.raises(UnsafeFolder):
        check_folder(tmp_path / "link")
    (tmp_path / "private").mkdir()
    (tmp_path / "good").symlink_to(tmp_path / "private")
    assert own_folder(tmp_path / "good") == tmp_path / "private"


@ROOT_ONLY
@pytest.mark.parametrize("what", ["folder", "parent", "link"])
def test_a_folder_of_another_user_is_refused(tmp_path: Path, what: str) -> None:
    (tmp_path / "above" / "own").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "above" / "own")
    theirs = {"folder": "above/own", "parent": "above", "link": "link"}[what]
    os.chown(tmp_path / theirs, SOMEBODY, SOMEBODY, follow_symlinks=False)
    path = tmp_path / ("link" if what == "link" else "above/own")
    with pytest.raises(UnsafeFolder, match=rf"belongs to another user \(uid {SOMEBODY}\)"):
        own_folder(path)
    assert not is_ours(path)


@pytest.mark.parametrize("what", ["file", "link", "readable", "absent"])
def test_only_a_private_folder_is_ours(tmp_path: Path, what: str) -> None:
    (tmp_path / "file").touch(0o600)
    (tmp_path / "closed").mkdir(0o700)
    (tmp_path / "link").symlink_to(tmp_path / "closed")
    (tmp_path / "readable").mkdir(0o755)
    assert is_ours(tmp_path / "closed")
    assert not is_ours(tmp_path / what)
