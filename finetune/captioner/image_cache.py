"""The outputs of a frozen image tower for each picture: computed once, stored on disk, and mapped into memory.

S: image tokens, W: their width, E: embedding dimension
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from captioners.coca.forward import encode_images
from finetune.batching import collate
from finetune.captioner.pictures import CaptionedPictures
from imagetext.outputs import to_disk, write_file
from imagetext.pools import FORK
from imagetext.shown import Progress, say

DONE = "done.json"
DTYPE = torch.bfloat16


def cache_images(
    pictures: CaptionedPictures, folder: Path, accelerator: Accelerator, *, batch_size: int, num_workers: int
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Encode all pictures, and return a function from a picture's index to its features (E,) and tokens (S, W).

    Each process encodes a part of the pictures. The outputs are stored as bfloat16 and returned as float32. They are
    read from `folder` if it has them already, for the same weights and picture bytes. Raises ValueError if the disk
    has too little free space.
    """
    captioner: Any = pictures.captioner  # a CoCaCaptioner
    model, count = captioner.model, len(pictures)
    first = captioner.normalise(pictures.image(0)[None].to(model.logit_scale.device))
    encoded = encode_images(model, first, products=captioner.products)
    shapes = {name: value.shape[1:] for name, value in zip(("features", "tokens"), encoded)}
    hashes = hashlib.sha256(b"".join(identity.hash for identity in pictures.identities)).hexdigest()
    description = {"weights": captioner.weights_sha256, "pictures": count, "hashes": hashes}
    done = folder / DONE
    if accelerator.is_main_process and not _describes(done, description):
        sizes = {name: count * shape.numel() * DTYPE.itemsize for name, shape in shapes.items()}
        _allocate_files(folder, sizes, count)
    accelerator.wait_for_everyone()
    maps = {
        name: torch.from_file(str(folder / f"{name}.bin"), shared=True, size=count * shape.numel(), dtype=DTYPE).view(
            count, *shape
        )
        for name, shape in shapes.items()
    }
    if not done.exists():
        _encode(pictures, maps, accelerator, batch_size=batch_size, num_workers=num_workers)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for name in maps:
                to_disk(folder / f"{name}.bin")
            write_file(done, json.dumps(description))
    return lambda index: (maps["features"][index].float(), maps["tokens"][index].float())


def _describes(done: Path, description: dict) -> bool:
    """Return whether the folder's cache is finished and has this description."""
    return done.exists() and done.read_bytes() == json.dumps(description).encode()


def _allocate_files(folder: Path, sizes: dict[str, int], count: int) -> None:
    """Print how much will be written, and create the files at their full sizes in bytes, in place of earlier ones."""
    total = sum(sizes.values())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    free = shutil.disk_usage(folder).free
    say(
        f"the frozen image tower's outputs for {count:,} pictures take {total / 1e9:.2f} GB in {folder}; "
        "pictures are not augmented"
    )
    if total > free:
        raise ValueError(f"{folder}: {total / 1e9:.2f} GB of image tower outputs do not fit: {free / 1e9:.2f} GB free")
    # Without reserved space, a disk that becomes full would kill the process when it writes into mapped memory.
    # Not every system can reserve space.
    reserve = getattr(os, "posix_fallocate", lambda handle, start, size: os.truncate(handle, size))
    for name, size in sizes.items():
        with open(folder / f"{name}.bin", "wb") as file:
            reserve(file.fileno(), 0, size)


def _encode(
    pictures: CaptionedPictures,
    maps: dict[str, Tensor],
    accelerator: Accelerator,
    *,
    batch_size: int,
    num_workers: int,
) -> None:
    """Encode this process's part of the pictures into the mapped files; halve batches that exceed the memory."""
    captioner: Any = pictures.captioner  # a CoCaCaptioner
    indices = range(accelerator.process_index, len(pictures), accelerator.num_processes)
    batches = [
        [(index, 0) for index in indices[start : start + batch_size]] for start in range(0, len(indices), batch_size)
    ]
    loader = DataLoader(
        pictures,
        batch_sampler=batches,
        num_workers=num_workers,
        multiprocessing_context=FORK if num_workers else None,
        pin_memory=accelerator.device.type == "cuda",
        collate_fn=partial(collate, pad_id=captioner.pad_id),
    )
    with accelerator.autocast():
        for batch in Progress(
            loader, desc="encoding pictures", unit="batch", mininterval=1, disable=not accelerator.is_main_process
        ):
            waiting = [(batch.images, batch.pictures)]
            while waiting:
                images, rows = waiting.pop()
                try:
                    pixels = captioner.normalise(images.to(accelerator.device, non_blocking=True))
                    encoded = encode_images(captioner.model, pixels, products=captioner.products)
                except torch.OutOfMemoryError:
                    if len(rows) == 1:
                        raise
                    waiting += zip(images.chunk(2), rows.chunk(2))
                    continue
                for name, values in zip(("features", "tokens"), encoded, strict=True):
                    maps[name][rows] = values.to("cpu", DTYPE)
