"""A YAML file that a user wrote, read or refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from slurm_worker.errors import UserError


def read_yaml(path: Path, field: str, mend: str) -> Any:
    """What the file holds, unchecked.

    Args:
        path: the file.
        field: what names it, for messages.
        mend: what to do where it can't be read, for messages.

    Raises:
        UserError: if it can't be read, or is no YAML.
    """
    try:
        # A SafeLoader as well.
        return yaml.load(path.read_text(), _Loader)  # noqa: S506
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is no text: {error}"
        raise UserError(f"{field}: {path} can't be read ({reason}); {mend}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{path}: is not YAML: {where}{error.problem}; mend that line") from error
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
                        problem=f"{key.value!r} is there twice", problem_mark=key.start_mark
                    )
                seen.add((key.tag, key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Tell where a value is that looks like a date, say, and is none."""
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            mark = node.start_mark
            line = (mark.get_snippet(0) or "").splitlines()[0]
            raise yaml.YAMLError(
                f"line {mark.line + 1}: {line}: {error}; put the value in quotes"
            ) from error
