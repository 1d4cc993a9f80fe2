"""Image-text samples, in and out: one record type, one way to decode, readers and writers of the usual formats."""

from importlib import import_module

_HOME = {
    "ColumnClash": "sets.room",
    "Record": "sample",
    "Shard": "sample",
    "decode_image": "sample",
    "image_size": "sample",
    "ShardWriter": "shards",
    "check_column": "columns",
    "dataset_features": "shards",
    "read_marker": "shards",
    "read_markers": "shards",
    "read_records": "sources",
    "read_samples": "sources",
    "StoreError": "stores",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # imported late: a command's `--help` needs only the flags of tables and must be quick
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
