"""A folder of files keeps what an object store promises, and leaves no drafts."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from slurm_worker.backends.local import FolderObjects
from slurm_worker.errors import UserError
from slurm_worker.protocol.ports import ObjectStore
from tests.contracts.objects import ObjectStoreContract


class TestFolderObjects(ObjectStoreContract):
    @pytest.fixture
    def objects(self, tmp_path: Path) -> ObjectStore:
        return FolderObjects(tmp_path / "store")

    @pytest.fixture
    def folder(self) -> str:
        return "lab/"


def test_files_get_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        FolderObjects(tmp_path).put("a", b"x")
        FolderObjects(tmp_path).put_new("b", b"x")
    finally:
        os.umask(before)
    assert {each.name: each.stat().st_mode & 0o777 for each in tmp_path.iterdir()} == {
        "a": 0o644,
        "b": 0o644,
    }


def test_only_one_process_creates_a_file_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_paths: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    store = FolderObjects(tmp_path)
    assert [store.put_new("a", b"first"), store.put_new("a", b"second")] == [True, False]
    assert store.get("a") == b"first"


def test_a_failed_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FolderObjects(tmp_path).upload("a", str(tmp_path / "none"))
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        FolderObjects(tmp_path).put("taken", b"x")
    assert [each.name for each in tmp_path.iterdir()] == ["taken"]


def test_a_file_with_the_name_of_the_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="out: is a file; name a folder"):
        FolderObjects(tmp_path / "out").put("a", b"x")
    assert (tmp_path / "out").read_text() == "mine"
