"""HTML pages of one file, which load nothing else, and in which no text of the data can become markup or a script."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from imagetext.shown import masked, neutral

SHARED = Path(__file__).parent / "templates"  # `colours.css` of all pages: light, dark and printed


def render_page(template: Path, *parts: Path, **values: Any) -> str:
    """Render a template. All values are escaped, except those of type `Markup`.

    The template may include files of its own folder, of the folders `parts` and of SHARED. It also gets `script`, the
    file of its name with the suffix `.js` ("" if there is none), and `policy`, which forbids requests, forms and all
    other scripts in the page.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, *parts, SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_safe,
    )
    path = template.with_suffix(".js")
    script = path.read_text(encoding="utf-8") if path.exists() else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.get_template(template.name).render(values, script=Markup(script), policy=Markup(policy))


def _safe(value: Any) -> Any:
    """The value; a text without secrets, control characters and marks that turn the direction of writing."""
    return masked(neutral(value)) if isinstance(value, str) and not isinstance(value, Markup) else value
