"""Names of captioners. The column of a captioner's captions is syn_text_<name>."""

import re


def check_name(name: str) -> None:
    """Raise ValueError if a captioner's name cannot be part of a column's name."""
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9_]+", name) or "emb" in name or "_captions" in name:
        raise ValueError(f"name {name!r}: must consist of a-z, 0-9 and _, and not contain 'emb' or '_captions'")


def column_name(text: str) -> str:
    """Turn any text into a captioner's name for use in columns, of characters in [a-z0-9_]."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "captioner"
