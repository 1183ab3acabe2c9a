"""The files that a published manifest names stay as they are until the promised moment."""

from __future__ import annotations

import json
from dataclasses import dataclass

from tests.simulator.checks.rows import Violation
from tests.simulator.stores.objects import WatchedObjects
from tests.simulator.world import World


@dataclass(frozen=True, slots=True)
class _Publication:
    folder: str
    at: float
    bodies: dict[str, bytes]  #: by key


class Publications:
    """The manifests that one run has published.

    Their files are promised to readers until the publication after the next one, and for `kept_s`
    after the next one.
    """

    def __init__(self, world: World, objects: WatchedObjects, kept_s: float) -> None:
        self._world = world
        self.kept_s = kept_s
        self._published: list[_Publication] = []
        objects.on_put, objects.on_delete = self._put, self._deleted

    def _put(self, key: str, body: bytes) -> None:
        if key == self._world.paths.manifest:
            self._publish(json.loads(body))
        elif any(found.bodies.get(key, body) != body for found in self._promised()):
            self._fail(f"{key} is changed, and a manifest names it")

    def _deleted(self, key: str) -> None:
        if any(key in found.bodies for found in self._promised()):
            self._fail(f"{key} is deleted, and promised to the readers of a manifest")

    def _publish(self, manifest: dict[str, object]) -> None:
        folder, named = str(manifest["folder"]), (manifest["files"], manifest["errors"])
        if self._published and self._published[-1].folder == folder:
            # Of the same version: its number was raised, or a reply was lost.
            return
        objects = self._world.objects.objects
        bodies: dict[str, bytes] = {}
        for files in named:
            assert isinstance(files, list)
            for file in files:
                if file["key"] not in objects:
                    self._fail(f"a manifest names {file['key']}, which does not exist")
                    return
                bodies[file["key"]] = objects[file["key"]]
        self._published.append(_Publication(folder, self._world.schedule.now, bodies))

    def _promised(self) -> list[_Publication]:
        """The publications whose files are promised now."""
        now, found = self._world.schedule.now, self._published[-2:]
        later = zip(self._published[:-2], self._published[1:-1], strict=True)
        return [*found, *(each for each, after in later if now < after.at + self.kept_s)]

    def _fail(self, what: str) -> None:
        self._world.schedule.fail(Violation(what))
