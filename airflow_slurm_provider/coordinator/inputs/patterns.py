"""Patterns of paths: ``*``, ``?`` and ``[...]`` within a name, ``**`` for any number of folders."""

from __future__ import annotations

import fnmatch
import re

_MARKS = re.compile(r"[*?\[]")
_ANY_FOLDERS = "**"


def is_pattern(path: str) -> bool:
    """Whether a path has a wildcard."""
    return _MARKS.search(path) is not None


class Pattern:
    """A path with wildcards, split at its first one."""

    def __init__(self, path: str) -> None:
        #: The path up to the last folder before a wildcard, without a slash at its end.
        self.folder = ""
        head, tail = [], path.split("/")
        while not is_pattern(tail[0]):
            head.append(tail.pop(0))
        self.folder = "/".join(head)
        #: What every name in that folder begins with, for shorter listings.
        self.start = _MARKS.split(tail[0])[0]
        self._names = [
            each if each == _ANY_FOLDERS else re.compile(fnmatch.translate(each)) for each in tail
        ]
        #: How many names a path below the folder has; None for any number.
        self.depth = None if _ANY_FOLDERS in tail else len(tail)
        self._hidden = [each.startswith((".", "_")) for each in tail]

    def matches(self, parts: tuple[str, ...]) -> bool:
        """Whether a path below the folder, split at its slashes, matches.

        A wildcard does not match a first character ``.`` or ``_``, except where it is written.
        """
        return self._match(parts, 0)

    def _match(self, parts: tuple[str, ...], at: int) -> bool:
        if at == len(self._names):
            return not parts
        wanted = self._names[at]
        if isinstance(wanted, str):
            if self._match(parts, at + 1):
                return True
            return len(parts) > 1 and not _is_hidden(parts[0]) and self._match(parts[1:], at)
        if not parts or (_is_hidden(parts[0]) and not self._hidden[at]):
            return False
        return wanted.fullmatch(parts[0]) is not None and self._match(parts[1:], at + 1)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))
