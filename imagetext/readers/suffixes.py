"""Suffixes of files: which are tars, tables and pictures."""

import os

TAR_SUFFIXES = (".tar", ".tgz", ".tbz2", ".tzst", ".tar.gz", ".tar.bz2", ".tar.zst")
# Of pictures, in the order of preference where a sample has several. The last are no pictures that we read, but say so.
PICTURE_SUFFIXES = tuple("jpg jpeg png webp gif bmp tif tiff avif jp2 j2k jfif jpe ppm pgm pnm apng heic heif".split())
COMPRESSIONS = {
    kind + end: codec
    for kind in (".jsonl", ".csv", ".tsv")
    for end, codec in ((".gz", "gzip"), (".zst", "zstd"), (".zstd", "zstd"))
}
# a list of rows in .json is a table, too
TABLE_SUFFIXES = (".jsonl", ".jsonlines", ".csv", ".tsv", ".parquet", *COMPRESSIONS)


def split_suffix(path: str) -> tuple[str, str]:
    """The name of a file without its suffix, and the suffix, `.jsonl.gz` and `.tar.gz` being one."""
    name = os.path.basename(path)
    double = next((suffix for suffix in (*COMPRESSIONS, *TAR_SUFFIXES) if name.lower().endswith(suffix)), None)
    return (name[: -len(double)], double) if double else (os.path.splitext(name)[0], os.path.splitext(name)[1].lower())


def table_kind(path: str) -> str:
    """The table's format by its suffix; `.jsonlines` is another name of `.jsonl`."""
    kind = split_suffix(path)[1]
    return ".jsonl" if kind == ".jsonlines" else kind
