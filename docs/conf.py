"""The Sphinx settings for the site of `docs/`: `make docs`, warnings as errors.

Pages are Markdown (MyST) that GitHub can also show. The reference is generated from the code: the
command line by sphinx-click, Python by autodoc, configuration and JSON documents by
`_extensions/models.py` and `_extensions/documents.py`. The build needs no network.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_extensions")]
# Airflow writes its settings to this folder as soon as it is imported, and logs that.
_AIRFLOW_HOME = tempfile.mkdtemp(prefix="airflow-of-docs-")
atexit.register(shutil.rmtree, _AIRFLOW_HOME, ignore_errors=True)
os.environ.update(AIRFLOW_HOME=_AIRFLOW_HOME, AIRFLOW__LOGGING__LOGGING_LEVEL="ERROR")

from pygments.lexers.special import TextLexer  # noqa: E402  after Airflow's home is set
from sphinx.application import Sphinx  # noqa: E402  after Airflow's home is set

from airflow_slurm_provider import __version__  # noqa: E402  the same

project = "airflow-slurm-provider"
author = "The airflow-slurm-provider authors"
version = release = __version__
language = "en"
# Help texts contain options exactly as a user types them: --json.
smartquotes = False
# In docstrings, text in backticks is code.
default_role = "code"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinxcontrib.mermaid",
    "documents",
    "models",
]
# News fragments are for the next release; only the README of their folder is a page.
exclude_patterns = ["_build", "_extensions", "changelog.d/+*"]

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = [
    "reference/output.schema.json",
    "reference/config.schema.json",
    "reference/site.schema.json",
]

myst_heading_anchors = 4
# GitHub also draws these.
myst_fence_as_directive = ["mermaid"]

napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
add_module_names = False

nitpicky = True
# Names of other projects: the build does not fetch the addresses of their documentation.
nitpick_ignore_regex = [("py:.*", r".*")]

#: Pages of the checkout outside of docs/, and their place in the site.
_ELSEWHERE = {
    "CHANGELOG.md": "/project/changes.md",
    "CONTRIBUTING.md": "/project/contributing.md",
    "SECURITY.md": "/project/security.md",
    **{
        f"benchmarks/{each.name}": "/project/measurements.md"
        for each in (HERE.parent / "benchmarks").glob("*.md")
    },
}


def _keep_in_the_site(app: Sphinx, page: str, source: list[str]) -> None:  # noqa: ARG001  Sphinx's
    """Make links to pages outside of docs/ lead to their copies in the site."""
    for outside, inside in _ELSEWHERE.items():
        source[0] = re.sub(rf"\]\((?:\.\./)*{re.escape(outside)}\)", f"]({inside})", source[0])


def _keep_included(app: Sphinx, file: Path, page: str, content: list[str]) -> None:  # noqa: ARG001
    """The same for included pages."""
    _keep_in_the_site(app, page, content)


def setup(app: Sphinx) -> None:
    """Sphinx's entry point."""
    app.connect("source-read", _keep_in_the_site)
    app.connect("include-read", _keep_included)
    # GitHub highlights these, but Pygments does not know them.
    for language in ("csv", "crontab"):
        app.add_lexer(language, TextLexer)
