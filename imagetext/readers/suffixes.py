"""Suffixes of files: which are tars, tables and pictures."""

import os

TAR_SUFFIXES = (".tar", ".tgz", ".tbz2", ".tzst", ".tar.gz", ".tar.bz2", ".tar.zst")
# Suffixes of pictures, in the order of preference if a sample has several. Those of HEIC are here for a clear error.
PICTURE_SUFFIXES = tuple("jpg jpeg png webp gif bmp tif tiff avif jp2 j2k jfif jpe ppm pgm pnm apng heic heif".split())
COMPRESSIONS = {
    kind + end: codec
    for kind in (".jsonl", ".csv", ".tsv")
    for end, codec in ((".gz", "gzip"), (".zst", "zstd"), (".zstd", "zstd"))
}
# and `.json`, if it is a list of rows
TABLE_SUFFIXES = (".jsonl", ".jsonlines", ".csv", ".tsv", ".parquet", *COMPRESSIONS)


def split_suffix(path: str) -> tuple[str, str]:
    """The name of a file without its suffix, and the suffix. `.jsonl.gz` and `.tar.gz` are single suffixes."""
    name = os.path.basename(path)
    for suffix in (*COMPRESSIONS, *TAR_SUFFIXES):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)], suffix
    stem, suffix = os.path.splitext(name)
    return stem, suffix.lower()


def not_an_input(path: str, expected: str, *, exists: bool) -> ValueError:
    """The error of an input whose suffix is none of the expected ones."""
    if exists and split_suffix(path)[1][1:] in PICTURE_SUFFIXES:
        # It names no file, so that the errors of all files of a pattern are a single one.
        return ValueError(f"{os.path.dirname(path) or '.'}: pictures are not given one by one; give this folder")
    return ValueError(f"{path}: {'' if exists else 'no such folder, and '}not a {expected}")


def table_kind(path: str) -> str:
    """The suffix that stands for a table's format; `.jsonlines` is returned as `.jsonl`."""
    kind = split_suffix(path)[1]
    return ".jsonl" if kind == ".jsonlines" else kind
