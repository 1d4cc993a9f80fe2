"""Caption sets from the files as their authors publish them: `KIND:FILE[#SPLIT]`, with the pictures in a folder of their own.

| KIND | FILE | captions of a picture |
|---|---|---|
| coco, coco-permissive | captions_*.json of COCO, also NoCaps' and VizWiz' | its five; permissive: of pictures under CC BY, BY-SA or BY-ND alone |
| karpathy | dataset_coco.json (or of Flickr30k) | its five; train takes restval in |
| docci | docci_descriptions.jsonlines | its description |
| dci-short, dci-extended, dci-complete | folder of DCI's annotations, a JSON file each | short; short and extra; these and all masks' |
| gbc-short, gbc-long, gbc-relation | GBC's graphs, JSON lines or Parquet | of the whole picture; relation: short and relations |
| recap-coco | Recap-COCO-30K's Parquet | the recaption |
| iiw | ImageInWords' data.jsonl | the IIW description |
| textcaps | TextCaps_0.1_*.json | its five |
| localized-narratives | Localized Narratives' JSON lines, one a narrative | its narratives |
| flickr | Flickr8k.token.txt, results_20130124.token | its five |

Other sets are tables as they stand: Flickr30k's results.csv, BLIP's files of the Karpathy splits, LLaVA's and ShareGPT4V's.

Licences of the sets: COCO's annotations CC BY 4.0, DOCCI and Recap-COCO and ImageInWords CC BY 4.0, DCI and GBC CC BY-NC.
"""

import logging
import os
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlparse

import numpy as np

from imagetext import limits
from imagetext.fields import json_value
from imagetext.hashes import name_hash
from imagetext.picture_files import Picture, PictureFolders, check_inside
from imagetext.readers.row_records import Row, Wanted, picture_of, row_records, with_unique_keys
from imagetext.readers.table_flags import Columns
from imagetext.readers.tables import ROWS_PER_SHARD, CompressedRows, TableRows, split_rows, split_suffix
from imagetext.sample import Record
from imagetext.stores import StoreError, entry, listing, open_file, read_bytes

logger = logging.getLogger(__name__)

PERMISSIVE = re.compile(r"creativecommons\.org/licenses/(by|by-sa|by-nd)/")
CANNED = re.compile(r"quality issues are too severe to recogni[sz]e (the )?visual content", re.IGNORECASE)  # VizWiz
SPLITS = {
    "docci": ("train", "test", "qual_dev", "qual_test"),
    "karpathy": ("train", "val", "test"),
}  # where a file has several

# What the names of pictures are made of in tables; not the column `image`, which holds the pictures themselves.
NAMES = Wanted(
    (
        "split",
        "example_id",
        "image_file",
        "description",
        "vertices",
        "img_path",
        "img_url",
        "image/key",
        "IIW",
        "image_id",
        "dataset_id",
        "caption",
        "coco_url",
        "recaption",
    )
)


@dataclass(frozen=True)
class CuratedRows:
    """Records of some rows of a published file, read when iterated."""

    kind: str
    path: str
    split: str
    folders: PictureFolders  # in which pictures lie, and which their names start from
    rows: Sequence[Row] | TableRows | CompressedRows
    first: int = 0  # the number, in the whole file, of the first of a sequence of rows
    shared: frozenset[int] = frozenset()  # hashes of the names of files that are several pictures'

    def __iter__(self) -> Iterator[Record]:
        stem = split_suffix(self.path)[0]
        rows = enumerate(self.rows, self.first) if isinstance(self.rows, Sequence) else self.rows.numbered()
        converted = (
            (row, f"{stem}-{number:09d}", f"{self.path}:{number + 1}")
            for number, published in rows
            if (row := self._convert(published)) is not None
        )
        return with_unique_keys(row_records(converted, self.folders), self.path)

    def pictures(self) -> Iterator[tuple[int, Picture]]:
        """The numbers of the rows that name files, and these."""
        rows = enumerate(self.rows, self.first) if isinstance(self.rows, Sequence) else self.rows.numbered(NAMES)
        return ((number, picture) for number, row in rows if (picture := picture_of(self._convert(row))))

    def _convert(self, row: Row | ValueError) -> Row | ValueError | None:
        """The row with the columns of `imagetext.readers.row_records`, or what is wrong with it; None where it belongs to another split."""
        if isinstance(row, ValueError) or self.kind not in CONVERTED:
            return row
        try:
            converted = CONVERTED[self.kind](row, self.split)
            if converted and self.shared and name_hash(converted["image"]) in self.shared:
                raise ValueError(
                    f"{converted['image']}: several rows have a picture of this file name and different places, so whose "
                    "the file is cannot be told"
                )
            return converted
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            return ValueError(f"{self.kind}: not a row of this set: {type(error).__name__} {error}")
        except ValueError as error:
            return error


def curated_pieces(spec: str, images: tuple[str, ...] = ()) -> list[CuratedRows]:
    """The rows of the file that a SPEC of this module names, in pieces of 1,000 at most.

    images: the folders of the pictures; unless given, that of the file. Raises ValueError where the file or split is none
    of that kind's, or names pictures outside; what one of DCI's annotations names is looked at with its row alone.
    """
    kind, _, rest = spec.partition(":")
    path, _, split = rest.partition("#")
    if split and kind not in SPLITS or split not in ("", *SPLITS.get(kind, ())):
        raise ValueError(
            f"{spec}: split {split!r} is none of {', '.join(SPLITS.get(kind, ())) or 'this file, which is one split'}"
        )
    if (there := entry(path)) is None:
        raise ValueError(f"{spec}: no such file or folder: {path}")
    folders = PictureFolders(path if there.is_folder else os.path.dirname(path), images)
    pieces = partial(CuratedRows, kind, path, split or "train", folders)
    if kind in CONVERTED and kind not in LOADED:
        tables = split_rows(path, Columns(keys=("image_id",)) if kind == "localized-narratives" else None)
        shared = _shared_names(tables) if kind.startswith("gbc-") else frozenset()
        return _inside([pieces(rows, shared=shared) for rows in tables])
    try:
        rows = LOADED[kind](path, split or "train", kind)
    except StoreError:
        raise
    except (KeyError, TypeError, AttributeError, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{spec}: not a file of this set: {type(error).__name__} {error}") from error
    if not rows:
        raise ValueError(f"{spec}: no picture of the split {split or 'train'!r} in {path}")
    if kind.startswith("dci-"):
        check_inside(
            path,
            ((None, Picture(os.path.basename(row["annotation"]))) for row in rows),
            PictureFolders(path),
            "annotations",
        )
    found = [pieces(rows[first : first + ROWS_PER_SHARD], first) for first in range(0, len(rows), ROWS_PER_SHARD)]
    return found if kind.startswith("dci-") else _inside(found)


def _inside(pieces: list[CuratedRows]) -> list[CuratedRows]:
    """The pieces; ValueError where their pictures lead outside."""
    for piece in pieces[:1]:
        check_inside(piece.path, (picture for one in pieces for picture in one.pictures()), piece.folders)
    return pieces


# ---- files that are one JSON document, or a folder of them, -> all rows ---------------------------------------------


def _load(path: str) -> Any:
    return json_value(read_bytes(path, limits.DOCUMENT), limits.DOCUMENT_VALUES)


def _coco(path: str, split: str, kind: str) -> list[Row]:
    document = _load(path)
    licences = {licence["id"]: licence["url"] for licence in document.get("licenses", ())}
    captions: dict[Any, list[str]] = {}
    for annotation in without_canned(document["annotations"], path):
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"].strip())
    rows = []
    for image in document["images"]:
        licence = licences.get(image.get("license"), "")
        if kind == "coco" or PERMISSIVE.search(licence):
            rows.append(
                {
                    "key": str(image["id"]),
                    "image": image["file_name"],
                    "captions": captions.get(image["id"], []),
                    "license": licence,
                }
            )
    return rows


def without_canned(annotations: Sequence[Any], path: str) -> list[Any]:
    """The annotations but those of VizWiz that say of a picture's quality what a form offered; a warning tells how many there were."""
    kept = [
        one
        for one in annotations
        if not (
            isinstance(one, Mapping) and isinstance(one.get("caption"), str) and CANNED.match(one["caption"].strip())
        )
    ]
    if left := len(annotations) - len(kept):
        logger.warning("%s: %s captions are left out, which only say that the picture is bad", path, f"{left:,}")
    return kept


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
    """An entry a caption, each with all of its picture; those of the test split have none."""
    rows: dict[str, Row] = {}
    for one in _load(path)["data"]:
        name = os.path.basename(one.get("image_path") or f"{one['image_id']}.jpg")
        rows[one["image_id"]] = {
            "key": str(one["image_id"]),
            "image": name,
            "captions": list(one.get("reference_strs", ())),
        }
    return list(rows.values())


def _flickr(path: str, split: str, kind: str) -> list[Row]:
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(read_bytes(path, limits.DOCUMENT).decode("utf-8-sig", "replace").splitlines(), 1):
        found = re.fullmatch(r"([^\t]+)#\d+\t(.*)", line.strip())
        if line.strip() and not found:
            raise ValueError(f"line {number}: expected NAME#NUMBER, a tab and a caption")
        if found:
            captions.setdefault(found[1], []).append(found[2].strip())
    return [{"key": os.path.splitext(name)[0], "image": name, "captions": texts} for name, texts in captions.items()]


def _dci(path: str, split: str, kind: str) -> list[Row]:
    if (there := entry(path)) is None or not there.is_folder:
        raise ValueError("expected the folder of annotations")
    return [{"annotation": one.path} for one in listing(path) if one.path.endswith(".json")]


# ---- a row as published -> a row of `imagetext.readers.row_records`, None where it belongs to another split ------------------------


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
    """GBC's toolkit names the picture `img_path`, the published graphs give `img_url`; both hold the vertices."""
    label = "detail" if kind == "gbc-long" else "short"
    captions = [
        desc["text"]
        for vertex in row["vertices"]
        if vertex["label"] == "image"
        for desc in vertex["descs"]
        if desc["label"] == label
    ]
    if kind == "gbc-relation":
        captions += [
            desc["text"] for vertex in row["vertices"] for desc in vertex["descs"] if desc["label"] == "relation"
        ]
    name = _gbc_name(row.get("img_path"), row.get("img_url"))
    return {"key": os.path.splitext(name)[0], "image": name, "captions": captions, "url": row.get("img_url")}


def _gbc_name(path: str | None, url: str | None) -> str:
    """The name of the picture's file: of its path, or of the URL that it was fetched from."""
    if path:
        return os.path.basename(path)
    if url:
        return os.path.basename(_path_in(url))
    raise ValueError("no img_path and no img_url")


def _path_in(url: str) -> str:
    try:
        return urlparse(url).path
    except ValueError as error:
        raise ValueError(f"{url}: no URL: {error}") from error


def _shared_names(tables: Sequence[TableRows | CompressedRows]) -> frozenset[int]:
    """Hashes of the names of files under which a GBC set has pictures of several places, for they come from all over the web."""
    names, places = array("Q"), array("Q")
    for table in tables:
        for _, row in table.numbered(Wanted(("img_path", "img_url"))):
            if isinstance(row, ValueError):
                continue
            path, url = row.get("img_path"), row.get("img_url")
            if isinstance(place := path or url, str):
                try:
                    name = _gbc_name(path, url)
                except ValueError:  # its record says so
                    continue
                names.append(name_hash(name))
                places.append(name_hash(place))
    pairs = np.unique(np.array([names, places], np.uint64), axis=1)
    found, counts = np.unique(pairs[0], return_counts=True)
    return frozenset(found[counts > 1].tolist())


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
KINDS = tuple({**LOADED, **CONVERTED})


def kinds_like(path: str) -> str:
    """What a JSON file that is given without its kind may be, as the end of a message; "" where it looks like none."""
    with open_file(path) as file:
        head = file.read(1 << 20)
    if re.match(rb'\s*\{\s*"https?://', head):
        return f"; did you mean vecap:{path}?"
    for kind, marks in (
        ("textcaps", (b'"data"', b'"image_id"')),
        ("karpathy", (b'"images"', b'"sentences"')),
        ("coco", (b'"images"', b'"file_name"')),
        ("coco", (b'"annotations"', b'"image_id"')),
    ):
        if all(mark in head for mark in marks):
            return f"; did you mean {kind}:{path}?"
    return ""
