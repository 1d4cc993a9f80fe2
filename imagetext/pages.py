"""HTML pages: one file each, which asks for nothing outside it, and in which no text of the data is markup or a script."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from imagetext.shown import masked, neutral

SHARED = Path(__file__).parent / "templates"  # `colours.css`, light, dark and printed, of every page


def render_page(template: Path, *parts: Path, **values: Any) -> str:
    """The page that a template makes of values, all of which are escaped but `Markup`.

    It may include the files of its folder, of the folders `parts` and of SHARED. The template also gets `script`, the file of its name that ends in `.js` ("" where there is none), and `policy`, which forbids
    the page requests, forms and all other scripts.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, *parts, SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    path = template.with_suffix(".js")
    script = path.read_text(encoding="utf-8") if path.exists() else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
    return environment.get_template(template.name).render(values, script=Markup(script), policy=Markup(policy))


def _shown(value: Any) -> Any:
    """Text without secrets, and without what turns the direction of writing for the rest of its line."""
    return masked(neutral(value)) if isinstance(value, str) and not isinstance(value, Markup) else value
