"""How the documentation is built: `nox -s docs`."""

from pathlib import Path

from sphinx.application import Sphinx

from wme_async import __version__
from wme_async._client import client, entities, hour_feed, realtime
from wme_async.offsets import OffsetStore

project = "wme_async"
author = "The wme_async developers"
project_copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "figures"]
html_extra_path = ["llms.txt"]
myst_enable_extensions = ["colon_fence", "deflist", "substitution"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"wme_async {__version__}"

# Docstrings are written to be read in an editor: plain backticks are code there, so they are here.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
# The integrations are described without their extras.
autodoc_mock_imports = ["aiokafka", "distributed", "nats", "obstore", "opentelemetry", "pyarrow"]
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True

# The client imports these when they are first used; here they are imported so that its signatures link to them.
vars(client).update(
    Wikidata=entities.Wikidata,
    Hours=hour_feed.Hours,
    OnHourGap=hour_feed.OnHourGap,
    Realtime=realtime.Realtime,
    OffsetStore=OffsetStore,
)

# Figures and tables are made by `nox -s bench` and kept beside the pages; a page without them says so.
_kept = sorted((Path(__file__).parent / "figures").glob("*"))
_shown = [path.read_text() for path in _kept if path.suffix == ".md"]
_shown += [
    f"![{path.stem.replace('-', ' ')}](figures/{path.name})" for path in _kept if path.suffix in {".svg", ".png"}
]
myst_substitutions = {
    "figures": "\n\n".join(_shown) or "No figures are kept with this copy of the documentation.",
}


def setup(app: Sphinx) -> None:
    """Let docstrings be read as they are written here."""
    app.connect("autodoc-process-docstring", _as_written, priority=100)


def _as_written(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Show fenced blocks, and blocks indented behind a blank line, as the code or drawing that they are."""
    del app, what, name, obj, options
    made: list[str] = []
    fenced = literal = False
    for line in lines:
        if line.startswith("```"):
            fenced = not fenced
            made += ["", ".. code-block:: python", ""] if fenced else [""]
            continue
        indented = line.startswith("    ")
        if indented and not literal and not fenced and made and not made[-1]:
            literal = True
            made += [".. code-block:: text", ""]
        elif line and not indented:
            literal = False
        made.append(f"    {line}" if fenced and line else line)
    lines[:] = made
