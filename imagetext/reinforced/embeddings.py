"""Embeddings in the files of a record: `npz` in float32 or `pth.gz` in bfloat16, in two layouts.

The newer layout has `image_emb`, `text_emb` for the original caption, and `<column>_emb` for each column. In the older
layout, that of DataCompDR, the rows of the columns are in `text_emb`, after those of the original captions.

Dimensions: V views, T texts, D the joined embeddings of all teachers.
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
    """Return embeddings as the bytes of a member `npz` (float32) or `pth.gz` (bfloat16).

    The same numbers always give the same bytes.
    """
    file = io.BytesIO()
    if kind == "npz":
        arrays: dict[str, Any] = {name: rows.float().numpy() for name, rows in embeddings.items()}
        np.savez(file, **arrays)
        return file.getvalue()
    torch.save({name: rows.to(torch.bfloat16, copy=True).contiguous() for name, rows in embeddings.items()}, file)
    return gzip.compress(file.getvalue(), compresslevel=1, mtime=0)  # higher levels hardly make embeddings smaller


def unpack(members: Mapping[str, bytes]) -> dict[str, Tensor]:
    """Return a record's embeddings by name, in float32, from `npz` or otherwise `pth.gz`; {} if there are none.

    Nothing in the files can run code.

    Raises ValueError if the member is not readable, would take more than limits.EMBEDDINGS bytes, or holds anything
    but tables of finite numbers.
    """
    kind = next((kind for kind in ("npz", "pth.gz") if kind in members), None)
    if kind is None:
        return {}
    try:
        embeddings = _arrays(members[kind]) if kind == "npz" else _tensors(members[kind])
    except MemoryError:  # the machine's fault, because the size of the data is limited
        raise
    except Exception as error:  # numpy, torch, gzip and zipfile raise errors of many types
        raise ValueError(f"{kind}: no embeddings that can be read safely: {error or type(error).__name__}") from error
    if bad := [name for name, rows in embeddings.items() if rows.ndim != 2 or not rows.isfinite().all()]:
        raise ValueError(f"{kind}: {', '.join(bad)}: not a table of finite numbers with a row for each embedding")
    return embeddings


def _arrays(data: bytes) -> dict[str, Tensor]:
    """The arrays of an npz. They are read by hand, because numpy would allocate the size that a header claims."""
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        _check_size(sum(info.file_size for info in archive.infolist()))
        for name in archive.namelist():
            with archive.open(name) as file:
                is_version_1 = np.lib.format.read_magic(file) == (1, 0)
                read_header = (
                    np.lib.format.read_array_header_1_0 if is_version_1 else np.lib.format.read_array_header_2_0
                )
                shape, by_columns, dtype = read_header(file)
                if dtype.kind != "f":
                    raise ValueError(f"{name}: {dtype} is not a floating-point type")
                rows = np.frombuffer(file.read(), dtype).reshape(shape, order="F" if by_columns else "C")
            arrays[name.removesuffix(".npy")] = rows
    _check_size(sum(4 * rows.size for rows in arrays.values()))
    with np.errstate(over="ignore"):  # `unpack` reports infinities
        return {name: torch.from_numpy(rows.astype(np.float32, order="C")) for name, rows in arrays.items()}


def _tensors(data: bytes) -> dict[str, Tensor]:
    """The tensors of a gzipped torch file.

    A small file may grow by gzip, by torch's archive, and by strides of tensors.
    """
    with gzip.open(io.BytesIO(data)) as zipped:
        file = io.BytesIO(zipped.read(limits.EMBEDDINGS + 1))
    _check_size(file.getbuffer().nbytes)
    with zipfile.ZipFile(file) as archive:
        _check_size(sum(info.file_size for info in archive.infolist()))
    file.seek(0)
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's message advises to load the file unsafely
        raise ValueError("holds more than tensors") from error
    bad = [str(name) for name, rows in tensors.items() if not _is_dense(rows)]
    if bad:
        raise ValueError(f"{', '.join(bad)}: not dense tensors of floating-point numbers")
    _check_size(sum(4 * rows.numel() for rows in tensors.values()))
    return {str(name): rows.detach().float().contiguous() for name, rows in tensors.items()}


def _is_dense(rows: Tensor) -> bool:
    return rows.is_floating_point() and rows.layout is torch.strided and rows.device.type == "cpu"


def _check_size(size: int) -> None:
    if size > limits.EMBEDDINGS:
        raise ValueError(f"{size:,} bytes once unpacked, more than {limits.EMBEDDINGS:,}")


def named_texts(
    text: str | None, captions: Sequence[str], columns: Mapping[str, Sequence[str]]
) -> dict[str, Sequence[str]]:
    """Return a record's texts by the name of their embeddings in the newer layout.

    text: the record's `txt`. captions: the original captions; they have embeddings of their own if there are several.
    columns: the columns that are embedded.

    `text_emb` has at most one row, because the official trainer takes further rows for those of synthetic captions.
    """
    several = {"captions_emb": captions} if len(captions) > 1 else {}
    return {"text_emb": [text] if text else [], **several, **{f"{name}_emb": texts for name, texts in columns.items()}}


def to_newer_layout(
    embeddings: Mapping[str, Tensor], views: int, texts: Mapping[str, Sequence[str]]
) -> dict[str, Tensor]:
    """Convert embeddings of either layout into the newer one.

    views: the number of views.
    texts: the record's texts, by the name of their embeddings in the newer layout: `text_emb` first, columns in the
        order of `syn.json`.

    Raises ValueError if there are no embeddings, or if their numbers differ from those of views and texts.
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
    """Raise ValueError if the numbers of embeddings differ from those of views and texts, or if their lengths differ.

    The embeddings are in the newer layout.
    """
    expected = {"image_emb": views, **{name: len(captions) for name, captions in texts.items()}}
    counts = {name: len(rows) for name, rows in embeddings.items()}
    differing = [
        f"{name}: {counts.get(name, 0)} rows for {expected.get(name, 0)}"
        for name in expected | counts
        if counts.get(name) != expected.get(name)
    ]
    if differing:
        raise ValueError(f"embeddings that are not of these views and texts: {', '.join(differing)}")
    if len({rows.shape[1] for rows in embeddings.values()}) > 1:
        lengths = ", ".join(f"{name}: {rows.shape[1]}" for name, rows in embeddings.items())
        raise ValueError(f"embeddings of different lengths: {lengths}")
