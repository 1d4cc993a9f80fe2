"""A page of pictures with their captions: one HTML file, nothing beside it."""

import base64
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jinja2
from PIL import Image

from imagetext.sample import decode_image

THUMBNAIL = 480  # pixels of the longer side: twice the size shown, for dense screens


def write_gallery(path: str | Path, pictures: Iterable[tuple[str, bytes | None, Mapping[str, Sequence[str]]]], *,
                  title: str = "Captions", subtitle: str = "") -> None:
    """Write a self-contained page of (key, encoded picture, {column: captions}), in the given order.

    A picture that does not decode is shown with the reason. A caption that a column repeats stands once, with its count.
    """
    environment = jinja2.Environment(loader=jinja2.PackageLoader("generate"), autoescape=True, trim_blocks=True)
    page = environment.get_template("gallery.html").render(
        title=title, subtitle=subtitle, pictures=[_card(*picture) for picture in pictures])
    unfinished = Path(f"{path}.part")
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, path)


def _card(key: str, image: bytes | None, columns: Mapping[str, Sequence[str]]) -> dict:
    card = {"key": key, "thumbnail": "", "reason": "",
            "columns": [(name, Counter(captions).items()) for name, captions in columns.items()]}
    try:
        card["thumbnail"] = _thumbnail(decode_image(image))
    except ValueError as error:
        card["reason"] = str(error)
    return card


def _thumbnail(image: Image.Image) -> str:
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")
