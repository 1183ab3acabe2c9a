"""The in-memory command line, for pages whose sessions are run here."""

from __future__ import annotations

import sys

from tests.stack.settings import ROOT
from tests.unit.cli.conftest import cli, handler

# What Sphinx loads is loaded by tests of the reference, too.
sys.path.append(str(ROOT / "docs" / "_extensions"))

__all__ = ["cli", "handler"]
