"""Embeddings in the files of a record: `npz` in float32 or `pth.gz` in bfloat16, in two layouts.

The newer layout has `image_emb`, `text_emb` of the original caption, and `<column>_emb` of each column. The older one, of
DataCompDR, has the columns' rows in `text_emb`, too, behind those of the original captions.

Dimensions: V views, T texts, D embedding of all teachers joined.
"""

import gzip
import io
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagetext import limits


def pack(embeddings: Mapping[str, Tensor], kind: str) -> bytes:
    """Embeddings as a member `npz`, float32, or `pth.gz`, bfloat16; the same bytes for the same numbers."""
    file = io.BytesIO()
    if kind == "npz":
        arrays: dict[str, Any] = {name: rows.float().numpy() for name, rows in embeddings.items()}
        np.savez(file, **arrays)
        return file.getvalue()
    torch.save({name: rows.to(torch.bfloat16, copy=True).contiguous() for name, rows in embeddings.items()}, file)
    return gzip.compress(file.getvalue(), compresslevel=1, mtime=0)  # embeddings hardly get smaller


def unpack(members: Mapping[str, bytes]) -> dict[str, Tensor]:
    """A record's embeddings by name, float32, of `npz` or else `pth.gz`; nothing in them can run code. {} where there are none.

    Raises: ValueError where the member is not readable, would take more than limits.EMBEDDINGS bytes, or holds anything but
    tables of finite numbers.
    """
    kind = next((kind for kind in ("npz", "pth.gz") if kind in members), None)
    if kind is None:
        return {}
    try:
        embeddings = _arrays(members[kind]) if kind == "npz" else _tensors(members[kind])
    except MemoryError:  # the machine's fault: what is read has a bound
        raise
    except Exception as error:  # numpy, torch, gzip and zipfile raise many kinds
        raise ValueError(f"{kind}: no embeddings that can be read safely: {error or type(error).__name__}") from error
    if bad := [name for name, rows in embeddings.items() if rows.ndim != 2 or not rows.isfinite().all()]:
        raise ValueError(f"{kind}: {', '.join(bad)}: not a table of finite numbers, one row each")
    return embeddings


def _arrays(data: bytes) -> dict[str, Tensor]:
    """An npz's arrays, each from as many bytes as there are: numpy makes room for what a header promises."""
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        _check_size(sum(info.file_size for info in archive.infolist()))
        for name in archive.namelist():
            with archive.open(name) as file:
                old = np.lib.format.read_magic(file) == (1, 0)
                header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
                shape, by_columns, dtype = header(file)
                if dtype.kind != "f":
                    raise ValueError(f"{name}: {dtype} is no floating-point type")
                rows = np.frombuffer(file.read(), dtype).reshape(shape, order="F" if by_columns else "C")
            arrays[name.removesuffix(".npy")] = rows
    _check_size(sum(4 * rows.size for rows in arrays.values()))
    with np.errstate(over="ignore"):  # infinities are told of later
        return {name: torch.from_numpy(rows.astype(np.float32, order="C")) for name, rows in arrays.items()}


def _tensors(data: bytes) -> dict[str, Tensor]:
    """The tensors of a gzipped torch file; few bytes can become many in gzip, in torch's own archive, and by strides."""
    with gzip.open(io.BytesIO(data)) as zipped:
        file = io.BytesIO(zipped.read(limits.EMBEDDINGS + 1))
    _check_size(file.getbuffer().nbytes)
    with zipfile.ZipFile(file) as archive:
        _check_size(sum(info.file_size for info in archive.infolist()))
    file.seek(0)
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its advice is to load the file unsafely
        raise ValueError("holds more than tensors") from error
    if bad := [
        str(name)
        for name, rows in tensors.items()
        if not (rows.is_floating_point() and rows.layout is torch.strided and rows.device.type == "cpu")
    ]:
        raise ValueError(f"{', '.join(bad)}: no dense tensors of floating-point numbers")
    _check_size(sum(4 * rows.numel() for rows in tensors.values()))
    return {str(name): rows.detach().float().contiguous() for name, rows in tensors.items()}


def _check_size(size: int) -> None:
    if size > limits.EMBEDDINGS:
        raise ValueError(f"{size:,} bytes once unpacked, more than {limits.EMBEDDINGS:,}")


def named_texts(
    text: str | None, captions: Sequence[str], columns: Mapping[str, Sequence[str]]
) -> dict[str, Sequence[str]]:
    """A record's texts by the name of their embeddings in the newer layout: `txt`, several originals, the columns embedded.

    `text_emb` has one row at most: from one with more, the official trainer takes synthetic captions' embeddings.
    """
    several = {"captions_emb": captions} if len(captions) > 1 else {}
    return {"text_emb": [text] if text else [], **several, **{f"{name}_emb": texts for name, texts in columns.items()}}


def modern(embeddings: Mapping[str, Tensor], views: int, texts: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """The embeddings in the newer layout, from either.

    texts: of the record, by the name that their embeddings have there; `text_emb` first, columns in the order of `syn.json`.
    Raises: ValueError where there are none, or not as many as there are views and texts.
    """
    if not {"image_emb", "text_emb"} <= embeddings.keys():
        raise ValueError(f"no embeddings to convert: found {', '.join(embeddings) or 'none'}")
    columns = {name: len(captions) for name, captions in texts.items() if name not in ("text_emb", "captions_emb")}
    rows = {"image_emb": embeddings["image_emb"]}
    if columns.keys() & embeddings.keys():
        rows |= {name: embeddings[name] for name in texts if name in embeddings}
    else:
        synthetic = sum(columns.values())
        originals = embeddings["text_emb"][: max(0, len(embeddings["text_emb"]) - synthetic)]
        rows["text_emb"] = originals[: len(texts["text_emb"])]
        rows |= {"captions_emb": originals} if "captions_emb" in texts else {}
        rows |= dict(zip(columns, embeddings["text_emb"][len(originals) :].split(list(columns.values()))))
    check_counts(rows, views, texts)
    return rows


def check_counts(embeddings: Mapping[str, Tensor], views: int, texts: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError where embeddings in the newer layout are not as many as views and texts, or differ in length."""
    wanted = {"image_emb": views, **{name: len(captions) for name, captions in texts.items()}}
    counts = {name: len(rows) for name, rows in embeddings.items()}
    if differing := [
        f"{name}: {counts.get(name, 0)} rows for {wanted.get(name, 0)}"
        for name in wanted | counts
        if counts.get(name) != wanted.get(name)
    ]:
        raise ValueError(f"embeddings that are not of these views and texts: {', '.join(differing)}")
    if len({rows.shape[1] for rows in embeddings.values()}) > 1:
        lengths = ", ".join(f"{name}: {rows.shape[1]}" for name, rows in embeddings.items())
        raise ValueError(f"embeddings of different lengths: {lengths}")
