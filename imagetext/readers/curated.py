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

import os
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from imagetext.hashes import name_hash
from imagetext.picture_files import PictureFolders, PictureReference, check_inside
from imagetext.readers.compressed_tables import CompressedRows
from imagetext.readers.curated_formats import CONVERTED, LOADED, gbc_name
from imagetext.readers.row_records import Row, Wanted, picture_of, row_records, with_unique_keys
from imagetext.readers.suffixes import split_suffix
from imagetext.readers.table_flags import Columns
from imagetext.readers.table_pieces import ROWS_PER_SHARD, TableRows
from imagetext.readers.tables import split_rows
from imagetext.sample import Record
from imagetext.stores import StoreError, entry, open_file

KINDS = tuple({**LOADED, **CONVERTED})
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

    def pictures(self) -> Iterator[tuple[int, PictureReference]]:
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
            ((None, PictureReference(os.path.basename(row["annotation"]))) for row in rows),
            PictureFolders(path),
            what="annotations",
        )
    cut = [pieces(rows[first : first + ROWS_PER_SHARD], first) for first in range(0, len(rows), ROWS_PER_SHARD)]
    return cut if kind.startswith("dci-") else _inside(cut)


def _inside(pieces: list[CuratedRows]) -> list[CuratedRows]:
    """The pieces; ValueError where their pictures lead outside."""
    for piece in pieces[:1]:
        check_inside(piece.path, (picture for one in pieces for picture in one.pictures()), piece.folders)
    return pieces


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
                    name = gbc_name(path, url)
                except ValueError:  # its record says so
                    continue
                names.append(name_hash(name))
                places.append(name_hash(place))
    pairs = np.unique(np.array([names, places], np.uint64), axis=1)
    hashes, counts = np.unique(pairs[0], return_counts=True)
    return frozenset(hashes[counts > 1].tolist())


def kinds_like(path: str) -> str:
    """Names the kind that a JSON file looks like, as the end of a message; "" where it looks like none."""
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
