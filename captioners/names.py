"""Names of captioners, which name their columns: syn_text_<name>."""

import re


def check_name(name: str) -> None:
    """Refuses a captioner's name that cannot name a column."""
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9_]+", name) or "emb" in name or "_captions" in name:
        raise ValueError(f"name {name!r}: must be of a-z, 0-9 and _, without 'emb' or '_captions'")


def column_name(text: str) -> str:
    """A captioner's name as records carry it, in [a-z0-9_]."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "captioner"
