"""Convert the files of published caption sets into rows of `imagetext.readers.row_records`.

LOADED has functions for files that are read as a whole: one JSON document, or a folder of them. CONVERTED has
functions that convert a single row.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlparse

from imagetext import limits
from imagetext.fields import json_value, lines_of
from imagetext.readers.row_records import Row
from imagetext.stores import entry, listing, read_bytes

logger = logging.getLogger(__name__)

PERMISSIVE = re.compile(r"creativecommons\.org/licenses/(by|by-sa|by-nd)/")
CANNED = re.compile(r"quality issues are too severe to recogni[sz]e (the )?visual content", re.IGNORECASE)  # VizWiz


# ---- files that are one JSON document, or a folder of them, -> all rows ---------------------------------------------


def _load(path: str) -> Any:
    return json_value(read_bytes(path, limits.DOCUMENT), limits.DOCUMENT_VALUES)


def _coco(path: str, split: str, kind: str) -> list[Row]:
    document = _load(path)
    licences = {licence["id"]: licence.get("url") or "" for licence in document.get("licenses", ())}
    captions: dict[str, list[str]] = {str(image["id"]): [] for image in document["images"]}
    unused = 0
    for annotation in without_canned(document.get("annotations", ()), path):  # a test split has only pictures
        text, texts = annotation["caption"], captions.get(str(annotation["image_id"]))
        if texts is None or not isinstance(text, str):
            unused += 1
        else:
            texts.append(text.strip())
    if unused:
        logger.warning("%s: %s annotations without a text or a picture are left out", path, f"{unused:,}")
    rows = []
    for image in document["images"]:
        licence = licences.get(image.get("license"), "")
        if kind == "coco" or PERMISSIVE.search(licence):
            rows.append(
                {
                    "key": str(image["id"]),
                    "image": image["file_name"],
                    "captions": captions[str(image["id"])],
                    "license": licence,
                }
            )
    return rows


def without_canned(annotations: Sequence[Any], path: str) -> list[Any]:
    """The annotations without VizWiz's ready-made sentence on bad pictures. A warning says how many were left out."""
    described = [annotation for annotation in annotations if not _is_canned(annotation)]
    if removed := len(annotations) - len(described):
        logger.warning("%s: %s captions that only say that the picture is bad are left out", path, f"{removed:,}")
    return described


def _is_canned(annotation: Any) -> bool:
    caption = annotation.get("caption") if isinstance(annotation, Mapping) else None
    return isinstance(caption, str) and CANNED.match(caption.strip()) is not None


def _karpathy(path: str, split: str, kind: str) -> list[Row]:
    names = ("train", "restval") if split == "train" else (split,)
    return [
        {
            "key": str(image.get("cocoid", image["imgid"])),
            "image": os.path.join(image.get("filepath", ""), image["filename"]),
            "captions": [sentence["raw"].strip() for sentence in image["sentences"]],
            "split": image["split"],
        }
        for image in _load(path)["images"]
        if image["split"] in names
    ]


def _textcaps(path: str, split: str, kind: str) -> list[Row]:
    """Read an entry for each caption. Each has all captions of its picture; those of the test split have none."""
    rows: dict[str, Row] = {}
    for annotation in _load(path)["data"]:
        name = os.path.basename(annotation.get("image_path") or f"{annotation['image_id']}.jpg")
        rows[annotation["image_id"]] = {
            "key": str(annotation["image_id"]),
            "image": name,
            "captions": list(annotation.get("reference_strs", ())),
        }
    return list(rows.values())


def _flickr(path: str, split: str, kind: str) -> list[Row]:
    captions: dict[str, list[str]] = {}
    text = read_bytes(path, limits.DOCUMENT).decode("utf-8-sig", "replace")
    for number, line in enumerate(lines_of(text), 1):
        match = re.fullmatch(r"([^\t]+)#\d+\t(.*)", line.strip())
        if line.strip() and not match:
            is_table = number == 1 and "\t" not in line
            advice = f"; if this is a table with a header, give {path} alone" if is_table else ""
            raise ValueError(f"line {number}: expected NAME#NUMBER, a tab and a caption{advice}")
        if match:
            captions.setdefault(match[1], []).append(match[2].strip())
    return [{"key": os.path.splitext(name)[0], "image": name, "captions": texts} for name, texts in captions.items()]


def _redcaps(path: str, split: str, kind: str) -> list[Row]:
    """Read annotations of RedCaps, whose downloader puts the pictures of each subreddit into a folder of its own."""
    return [
        {
            "key": row["image_id"],
            "image": f"{row['subreddit']}/{row['image_id']}.jpg",
            "captions": [row["caption"]],
            "url": row.get("url"),
        }
        for row in _load(path)["annotations"]
    ]


def _dci(path: str, split: str, kind: str) -> list[Row]:
    if (folder := entry(path)) is None or not folder.is_folder:
        raise ValueError("expected the folder of annotations")
    return [{"annotation": file.path} for file in listing(path) if file.path.endswith(".json")]


# ---- a published row -> a row of `imagetext.readers.row_records`; None if it belongs to another split ---------------


def _dci_row(row: Row, split: str, *, kind: str) -> Row:
    document = _load(row["annotation"])
    parts = [document["short_caption"]]
    if kind != "dci-short":
        parts.append(document["extra_caption"])
    if kind == "dci-complete":
        masks = sorted(document["mask_data"].values(), key=lambda mask: mask["idx"])
        parts += [
            f"{mask['label']}: {mask['caption']}" if mask["label"] else mask["caption"]
            for mask in masks
            if mask["caption"]
        ]
    caption = " ".join(_sentence(part) for part in parts if part and part.strip())
    return {"key": os.path.splitext(document["image"])[0], "image": document["image"], "captions": [caption]}


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _docci_row(row: Row, split: str) -> Row | None:
    if row["split"] != split:
        return None
    return {"key": row["example_id"], "image": row["image_file"], "captions": [row["description"]], "split": split}


def _gbc_row(row: Row, split: str, *, kind: str) -> Row:
    """GBC's toolkit names the picture in `img_path`, the published graphs in `img_url`; both have the vertices."""
    label = "detail" if kind == "gbc-long" else "short"
    captions = [
        desc["text"]
        for vertex in row["vertices"]
        if vertex["label"] == "image"
        for desc in vertex["descs"]
        if desc["label"] == label
    ]
    if kind == "gbc-relation":
        for vertex in row["vertices"]:
            captions += [desc["text"] for desc in vertex["descs"] if desc["label"] == "relation"]
    name = gbc_name(row.get("img_path"), row.get("img_url"))
    return {"key": os.path.splitext(name)[0], "image": name, "captions": captions, "url": row.get("img_url")}


def gbc_name(path: str | None, url: str | None) -> str:
    """The file name of a picture, from its path or from the URL that it was fetched from."""
    if path:
        return os.path.basename(path)
    if url:
        return os.path.basename(_path_in(url))
    raise ValueError("no img_path and no img_url")


def _path_in(url: str) -> str:
    try:
        return urlparse(url).path
    except ValueError as error:
        raise ValueError(f"{url}: not a URL: {error}") from error


def _localized_narratives_row(row: Row, split: str) -> Row:
    name = str(row["image_id"])
    file = f"{int(name):012d}.jpg" if str(row.get("dataset_id")).lower().startswith("mscoco") else f"{name}.jpg"
    texts = row["caption"]
    return {"key": name, "image": file, "captions": texts if isinstance(texts, list) else [texts]}


def _recap_coco_row(row: Row, split: str) -> Row:
    picture = next((row[name] for name in ("image_binary", "image") if row.get(name) is not None), None)
    name = os.path.basename(_path_in(row["coco_url"]))
    return {
        "key": str(row["image_id"]),
        "image": name if picture is None else picture,
        "captions": [row["recaption"]],
        "caption_coco": row["caption"],
    }


def _iiw_row(row: Row, split: str) -> Row:
    name = row.get("image") or row["image/key"]
    file = name if os.path.splitext(name)[1] else f"{name}.jpg"
    return {"key": os.path.splitext(name)[0], "image": file, "captions": [row["IIW"]]}


LOADED: Mapping[str, Callable[[str, str, str], list[Row]]] = {
    "coco": _coco,
    "coco-permissive": _coco,
    "karpathy": _karpathy,
    "textcaps": _textcaps,
    "flickr": _flickr,
    "redcaps": _redcaps,
    **dict.fromkeys(("dci-short", "dci-extended", "dci-complete"), _dci),
}
CONVERTED: Mapping[str, Callable[[Row, str], Row | None]] = {
    "docci": _docci_row,
    "recap-coco": _recap_coco_row,
    "iiw": _iiw_row,
    "localized-narratives": _localized_narratives_row,
    **{kind: partial(_dci_row, kind=kind) for kind in ("dci-short", "dci-extended", "dci-complete")},
    **{kind: partial(_gbc_row, kind=kind) for kind in ("gbc-short", "gbc-long", "gbc-relation")},
}
