"""Embeddings in the files of a record: `npz` in float32 or `pth.gz` in bfloat16, in two layouts.

The newer layout has `image_emb`, `text_emb` of the original caption, and `<column>_emb` of each column. The older one, of
DataCompDR, has the columns' rows in `text_emb`, too, behind those of the original captions.

Dimensions: V views, T texts, D embedding of all teachers joined.
"""

import gzip
import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def pack(embeddings: Mapping[str, Tensor], kind: str) -> bytes:
    """Embeddings as a member `npz`, float32, or `pth.gz`, bfloat16; the same bytes for the same numbers."""
    file = io.BytesIO()
    if kind == "npz":
        np.savez(file, **{name: rows.float().numpy() for name, rows in embeddings.items()})
        return file.getvalue()
    torch.save({name: rows.to(torch.bfloat16, copy=True).contiguous() for name, rows in embeddings.items()}, file)
    return gzip.compress(file.getvalue(), compresslevel=1, mtime=0)  # embeddings hardly get smaller


def unpack(members: Mapping[str, bytes]) -> dict[str, Tensor]:
    """A record's embeddings by name, float32, of `npz` or else `pth.gz`; nothing in them can run code. {} where there are none.

    Raises: ValueError where the member is not readable, or holds anything but tables of numbers.
    """
    kind = next((kind for kind in ("npz", "pth.gz") if kind in members), None)
    if kind is None:
        return {}
    try:
        if kind == "npz":
            with np.load(io.BytesIO(members[kind]), allow_pickle=False) as arrays:
                embeddings = {name: torch.from_numpy(arrays[name].astype(np.float32)) for name in arrays.files}
        else:
            tensors = torch.load(io.BytesIO(gzip.decompress(members[kind])), map_location="cpu", weights_only=True)
            embeddings = {str(name): rows.float() for name, rows in tensors.items()}
    except MemoryError:
        raise
    except Exception as error:  # numpy, torch, gzip and zipfile raise many kinds
        raise ValueError(f"{kind}: no embeddings that can be read safely: {error}") from error
    if bad := [name for name, rows in embeddings.items() if rows.ndim != 2]:
        raise ValueError(f"{kind}: {', '.join(bad)}: not a table of embeddings, one row each")
    return embeddings


def modern(embeddings: Mapping[str, Tensor], views: int, texts: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """The embeddings in the newer layout, from either.

    texts: of the record, by the name that their embeddings have there; `text_emb` first, columns in the order of `syn.json`.
    Raises: ValueError where there are none, or not as many as there are views and texts.
    """
    if not {"image_emb", "text_emb"} <= embeddings.keys():
        raise ValueError(f"no embeddings to convert: found {', '.join(embeddings) or 'none'}")
    columns = {name: len(of) for name, of in texts.items() if name not in ("text_emb", "captions_emb")}
    rows = {"image_emb": embeddings["image_emb"]}
    if columns.keys() & embeddings.keys():
        rows |= {name: embeddings[name] for name in texts if name in embeddings}
    else:
        synthetic = sum(columns.values())
        originals = embeddings["text_emb"][:max(0, len(embeddings["text_emb"]) - synthetic)]
        rows["text_emb"] = originals[:len(texts["text_emb"])]
        rows |= {"captions_emb": originals} if "captions_emb" in texts else {}
        rows |= dict(zip(columns, embeddings["text_emb"][len(originals):].split(list(columns.values()))))
    wanted = {"image_emb": views, **{name: len(of) for name, of in texts.items()}}
    found = {name: len(rows.get(name, ())) for name in wanted}
    if found != wanted:
        differing = [f"{name}: {found[name]} rows for {count}" for name, count in wanted.items() if count != found[name]]
        raise ValueError(f"embeddings that are not of these views and texts: {', '.join(differing)}")
    return rows
