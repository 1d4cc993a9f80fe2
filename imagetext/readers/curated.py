"""Read published caption sets from the files of their authors: `KIND:FILE[#SPLIT]`.

The pictures are in a separate folder.

| KIND | FILE | captions of a picture |
|---|---|---|
| coco, coco-permissive | captions_*.json of COCO, NoCaps, VizWiz | five; permissive: only of CC BY, BY-SA, BY-ND |
| karpathy | dataset_coco.json (or of Flickr30k) | five; the split train includes restval |
| docci | docci_descriptions.jsonlines | its description |
| dci-short, dci-extended, dci-complete | folder of DCI's JSON files | short; and extra; and those of all masks |
| gbc-short, gbc-long, gbc-relation | GBC's graphs, JSON lines or Parquet | short; detail; short and relations |
| recap-coco | Recap-COCO-30K's Parquet | the recaption |
| iiw | ImageInWords' data.jsonl | the IIW description |
| textcaps | TextCaps_0.1_*.json | five |
| localized-narratives | Localized Narratives' JSON lines, one for each narrative | its narratives |
| flickr | Flickr8k.token.txt, results_20130124.token | five |
| redcaps | RedCaps' annotations of a subreddit, abandoned_2017.json | one |

Other sets can be read as tables: captions.txt of Flickr8k and results.csv of Flickr30k, as Kaggle has them; BLIP's
files of the Karpathy splits, LLaVA's and ShareGPT4V's.

Licences of the sets: COCO's annotations CC BY 4.0, DOCCI and Recap-COCO and ImageInWords CC BY 4.0, DCI and GBC CC
BY-NC.
"""

import os
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np

from imagetext.hashes import name_hash
from imagetext.picture_files import PictureFolders, PictureReference, check_inside
from imagetext.readers.compressed_tables import CompressedRows
from imagetext.readers.curated_formats import CONVERTED, LOADED, gbc_name
from imagetext.readers.row_records import Row, RowSelection, picture_of, row_records, with_unique_keys
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
}  # of kinds whose file has several splits

# The columns that names of pictures are made of; not the column `image`, which holds the pictures themselves.
NAMES = RowSelection(
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
    folders: PictureFolders  # in which pictures lie, and from which relative paths start
    rows: Sequence[Row] | TableRows | CompressedRows
    first: int = 0  # if `rows` is a sequence: the number of its first row in the whole file
    shared: frozenset[int] = frozenset()  # hashes of file names that several pictures share

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
        """The numbers of the rows that name a picture file, and the references to these files."""
        rows = enumerate(self.rows, self.first) if isinstance(self.rows, Sequence) else self.rows.numbered(NAMES)
        return ((number, picture) for number, row in rows if (picture := picture_of(self._convert(row))))

    def _convert(self, row: Row | ValueError) -> Row | ValueError | None:
        """The row with the columns of `imagetext.readers.row_records`, or what is wrong with it.

        None if the row belongs to another split.
        """
        if isinstance(row, ValueError) or self.kind not in CONVERTED:
            return row
        try:
            converted = CONVERTED[self.kind](row, self.split)
            if converted and self.shared and name_hash(converted["image"]) in self.shared:
                raise ValueError(
                    f"{converted['image']}: several rows have pictures of this file name from different places, so it "
                    "is not known which of them the file is"
                )
            return converted
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            return ValueError(f"{self.kind}: not a row of this set: {type(error).__name__} {error}")
        except ValueError as error:
            return error


def curated_pieces(spec: str, images: tuple[str, ...] = ()) -> list[CuratedRows]:
    """Return the rows of the file that a SPEC of this module names, in pieces of at most 1,000 rows.

    images: the folders of the pictures (default: the folder of the file).

    Raises ValueError if there is no such file or split of that kind, or if it names pictures outside these folders.
    The pictures that DCI's annotations name are checked only when their rows are read.
    """
    kind, _, source = spec.partition(":")
    path, _, split = source.partition("#")
    splits = SPLITS.get(kind, ())
    if split not in ("", *splits):
        raise ValueError(f"{spec}: split {split!r} is none of {', '.join(splits) or 'this file, which is one split'}")
    if (file := entry(path)) is None:
        raise ValueError(f"{spec}: no such file or folder: {path}")
    folders = PictureFolders(path if file.is_folder else os.path.dirname(path), images)
    piece = partial(CuratedRows, kind=kind, path=path, split=split or "train", folders=folders)
    if kind in CONVERTED and kind not in LOADED:
        tables = split_rows(path, Columns(keys=("image_id",)) if kind == "localized-narratives" else None)
        shared = _shared_names(tables) if kind.startswith("gbc-") else frozenset()
        return _check_pictures([piece(rows=rows, shared=shared) for rows in tables])
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
    starts = range(0, len(rows), ROWS_PER_SHARD)
    pieces = [piece(rows=rows[first : first + ROWS_PER_SHARD], first=first) for first in starts]
    return pieces if kind.startswith("dci-") else _check_pictures(pieces)


def _check_pictures(pieces: list[CuratedRows]) -> list[CuratedRows]:
    """Return the pieces. Raises ValueError if their pictures lead outside."""
    if pieces:
        pictures = chain.from_iterable(piece.pictures() for piece in pieces)
        check_inside(pieces[0].path, pictures, pieces[0].folders)
    return pieces


def _shared_names(tables: Sequence[TableRows | CompressedRows]) -> frozenset[int]:
    """Hashes of file names that several pictures of a GBC set have, because these come from many web sites."""
    names, places = array("Q"), array("Q")
    for table in tables:
        for _, row in table.numbered(RowSelection(("img_path", "img_url"))):
            if isinstance(row, ValueError):
                continue
            path, url = row.get("img_path"), row.get("img_url")
            if isinstance(place := path or url, str):
                try:
                    name = gbc_name(path, url)
                except ValueError:  # the row's record has this error
                    continue
                names.append(name_hash(name))
                places.append(name_hash(place))
    pairs = np.unique(np.array([names, places], np.uint64), axis=1)
    hashes, counts = np.unique(pairs[0], return_counts=True)
    return frozenset(hashes[counts > 1].tolist())


def kinds_like(path: str) -> str:
    """The end of a message that names the kind that a JSON or text file looks like; "" if it looks like none."""
    with open_file(path) as file:
        head = file.read(1 << 20)
    if re.match(rb'\s*\{\s*"https?://', head):
        return f"; did you mean vecap:{path}?"
    if re.match(rb"[^\t\n]+#\d+\t", head):
        return f"; did you mean flickr:{path}?"
    for kind, marks in (
        ("textcaps", (b'"data"', b'"image_id"')),
        ("karpathy", (b'"images"', b'"sentences"')),
        ("redcaps", (b'"annotations"', b'"subreddit"')),
        ("coco", (b'"images"', b'"file_name"', b'"id"')),
        ("coco", (b'"annotations"', b'"image_id"')),
    ):
        if all(mark in head for mark in marks):
            return f"; did you mean {kind}:{path}?"
    return ""
