"""Read a YAML file that a user wrote; each mistake in it is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from slurm_worker.errors import UserError


def read_yaml(path: Path, field: str, hint: str) -> Any:
    """What the file holds, unchecked.

    For messages: `field` is the setting that names the file, `hint` what to do if it can't be read.

    Raises:
        UserError: if it can't be read, or is not YAML.
    """
    try:
        # _Loader is a SafeLoader.
        return yaml.load(path.read_text(), _Loader)  # noqa: S506
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not text: {error}"
        raise UserError(f"{field}: {path} can't be read ({reason}); {hint}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(
            f"{path}: is not YAML: {where}{error.problem}; correct that line"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse a mapping that names a key twice; YAML's own loader keeps the last."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value!r} occurs twice", problem_mark=key.start_mark
                    )
                seen.add((key.tag, key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Name the line of a value that looks like a date, for example, but is not valid."""
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            mark = node.start_mark
            line = (mark.get_snippet(0) or "").splitlines()[0]
            raise yaml.YAMLError(
                f"line {mark.line + 1}: {line}: {error}; put the value in quotes"
            ) from error
