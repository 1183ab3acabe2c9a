"""What every `ports.ObjectStore` promises."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from slurm_worker.errors import Missing
from slurm_worker.protocol.ports import ObjectStore


class ObjectStoreContract:
    """Inherit and give a fixture `objects` and a fixture `folder` (a fresh key prefix)."""

    def test_an_object_is_read_whole_and_in_ranges(self, objects: ObjectStore, folder: str) -> None:
        objects.put(f"{folder}a", b"0123456789")
        assert objects.get(f"{folder}a") == b"0123456789"
        assert objects.get(f"{folder}a", start=3, length=4) == b"3456"
        assert objects.size(f"{folder}a") == 10

    def test_a_missing_object_reads_as_none(self, objects: ObjectStore, folder: str) -> None:
        assert objects.get(f"{folder}none") is None
        assert objects.get(f"{folder}none", start=0, length=1) is None
        assert objects.size(f"{folder}none") is None

    def test_put_new_never_replaces(self, objects: ObjectStore, folder: str) -> None:
        assert objects.put_new(f"{folder}a", b"first")
        assert not objects.put_new(f"{folder}a", b"second")
        assert objects.get(f"{folder}a") == b"first"

    def test_one_of_concurrent_put_new_wins(self, objects: ObjectStore, folder: str) -> None:
        won = []

        def create(number: int) -> None:
            if objects.put_new(f"{folder}done", str(number).encode()):
                won.append(number)

        threads = [threading.Thread(target=create, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert objects.get(f"{folder}done") == str(won[0]).encode()

    def test_an_object_is_read_with_its_tag_and_age(
        self, objects: ObjectStore, folder: str
    ) -> None:
        assert objects.read(f"{folder}none") is None
        objects.put(f"{folder}a", b"first")
        found = objects.read(f"{folder}a")
        assert found is not None
        assert found.body == b"first"
        assert abs(found.modified - time.time()) < 60
        objects.put(f"{folder}a", b"second")
        again = objects.read(f"{folder}a")
        assert again is not None
        assert again.tag != found.tag

    def test_put_if_replaces_only_what_was_read(self, objects: ObjectStore, folder: str) -> None:
        objects.put(f"{folder}a", b"first")
        found = objects.read(f"{folder}a")
        assert found is not None
        assert not objects.put_if(f"{folder}a", b"other", '"other"')
        assert objects.put_if(f"{folder}a", b"second", found.tag)
        assert not objects.put_if(f"{folder}a", b"third", found.tag)
        assert objects.get(f"{folder}a") == b"second"
        assert not objects.put_if(f"{folder}none", b"x", found.tag)
        assert objects.get(f"{folder}none") is None

    def test_one_of_concurrent_put_if_wins(self, objects: ObjectStore, folder: str) -> None:
        objects.put(f"{folder}a", b"first")
        found = objects.read(f"{folder}a")
        assert found is not None
        won = []

        def replace(number: int) -> None:
            if objects.put_if(f"{folder}a", str(number).encode(), found.tag):
                won.append(number)

        threads = [threading.Thread(target=replace, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert objects.get(f"{folder}a") == str(won[0]).encode()

    def test_a_copy_has_the_same_bytes_and_a_missing_object_has_none(
        self, objects: ObjectStore, folder: str
    ) -> None:
        objects.put(f"{folder}a", b"0123456789")
        objects.copy(f"{folder}a", f"{folder}b")
        assert objects.get(f"{folder}b") == b"0123456789"
        with pytest.raises(Missing):
            objects.copy(f"{folder}none", f"{folder}c")
        assert objects.get(f"{folder}c") is None

    def test_keys_are_listed_in_order(self, objects: ObjectStore, folder: str) -> None:
        for name in ("b", "a", "c/d"):
            objects.put(folder + name, b"x")
        assert list(objects.list(folder)) == [f"{folder}a", f"{folder}b", f"{folder}c/d"]

    def test_a_listing_gives_size_and_age(self, objects: ObjectStore, folder: str) -> None:
        before = time.time()
        objects.put(f"{folder}a", b"0123456789")
        objects.put(f"{folder}b", b"")
        entries = list(objects.entries(folder))
        assert [(each.key, each.size) for each in entries] == [
            (f"{folder}a", 10),
            (f"{folder}b", 0),
        ]
        # By the store's clock, in whole seconds where it is S3.
        assert all(abs(each.modified - before) < 60 for each in entries)

    def test_a_listing_has_the_tag_that_a_read_gives_or_none(
        self, objects: ObjectStore, folder: str
    ) -> None:
        objects.put(f"{folder}a", b"x")
        (entry,) = objects.entries(folder)
        read = objects.read(entry.key)
        assert read is not None
        assert entry.tag in ("", read.tag)

    def test_many_objects_are_deleted_at_once_and_missing_ones_are_ignored(
        self, objects: ObjectStore, folder: str
    ) -> None:
        for name in ("a", "b", "c"):
            objects.put(folder + name, b"x")
        objects.delete_many([f"{folder}a", f"{folder}none", f"{folder}c"])
        assert list(objects.list(folder)) == [f"{folder}b"]
        objects.delete_many([])

    def test_a_deleted_object_is_gone(self, objects: ObjectStore, folder: str) -> None:
        objects.put(f"{folder}a", b"x")
        objects.delete(f"{folder}a")
        assert objects.get(f"{folder}a") is None

    def test_downloading_a_missing_object_is_an_error(
        self, objects: ObjectStore, folder: str, tmp_path: Path
    ) -> None:
        with pytest.raises(Missing):
            objects.download(f"{folder}none", str(tmp_path / "down"))

    def test_files_are_uploaded_and_downloaded_unchanged(
        self, objects: ObjectStore, folder: str, tmp_path: Path
    ) -> None:
        (tmp_path / "up").write_bytes(b"\x00\xff" * 1000)
        objects.upload(f"{folder}f", str(tmp_path / "up"))
        objects.download(f"{folder}f", str(tmp_path / "down"))
        assert (tmp_path / "down").read_bytes() == b"\x00\xff" * 1000
