"""What a frozen image tower says of each picture: computed once, kept on disk, mapped into memory.

S: image tokens, W: their width, E: embedding
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
from imagetext.shown import Progress, say

DONE = "done.json"
DTYPE = torch.bfloat16


def cache_images(
    pictures: CaptionedPictures, folder: Path, accelerator: Accelerator, *, batch_size: int, num_workers: int
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Encodes every picture, each rank a part of them; gives features (E,) and tokens (S, W) of picture i, float32 of bfloat16.

    Done before with the same weights, and pictures of the same bytes, it is read. Raises ValueError where the disk has no room.
    """
    captioner: Any = pictures.captioner  # a CoCaCaptioner
    model, count = captioner.model, len(pictures)
    first = captioner.normalise(pictures.image(0)[None].to(model.logit_scale.device))
    shapes = {name: value.shape[1:] for name, value in zip(("features", "tokens"), encode_images(model, first))}
    hashes = hashlib.sha256(b"".join(identity.hash for identity in pictures.identities)).hexdigest()
    asked = {"weights": captioner.weights_sha256, "pictures": count, "hashes": hashes}
    done = folder / DONE
    if accelerator.is_main_process and not _is(done, asked):
        _make_room(folder, {name: count * shape.numel() * DTYPE.itemsize for name, shape in shapes.items()}, count)
    accelerator.wait_for_everyone()
    maps = {
        name: torch.from_file(str(folder / f"{name}.bin"), shared=True, size=count * shape.numel(), dtype=DTYPE).view(
            count, *shape
        )
        for name, shape in shapes.items()
    }
    if not done.exists():
        _encode(pictures, maps, accelerator, batch_size, num_workers)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for name in maps:
                to_disk(folder / f"{name}.bin")
            write_file(done, json.dumps(asked))
    return lambda index: (maps["features"][index].float(), maps["tokens"][index].float())


def _is(done: Path, asked: dict) -> bool:
    return done.exists() and json.loads(done.read_text(encoding="utf-8")) == asked


def _make_room(folder: Path, sizes: dict[str, int], count: int) -> None:
    """Says how much will be written, and makes the files at their full size."""
    total = sum(sizes.values())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    free = shutil.disk_usage(folder).free
    say(
        f"the frozen image tower's outputs of {count:,} pictures take {total / 1e9:.2f} GB in {folder}; "
        "pictures are not augmented"
    )
    if total > free:
        raise ValueError(f"{folder}: {total / 1e9:.2f} GB of image tower outputs do not fit: {free / 1e9:.2f} GB free")
    # A disk that is full later would end the process at a write into mapped memory. Not every system can reserve.
    reserve = getattr(os, "posix_fallocate", lambda handle, start, size: os.truncate(handle, size))
    for name, size in sizes.items():
        with open(folder / f"{name}.bin", "wb") as file:
            reserve(file.fileno(), 0, size)


def _encode(
    pictures: CaptionedPictures, maps: dict[str, Tensor], accelerator: Accelerator, batch_size: int, num_workers: int
) -> None:
    captioner: Any = pictures.captioner  # a CoCaCaptioner
    own = range(accelerator.process_index, len(pictures), accelerator.num_processes)
    batches = [[(index, 0) for index in own[start : start + batch_size]] for start in range(0, len(own), batch_size)]
    loader = DataLoader(
        pictures,
        batch_sampler=batches,
        num_workers=num_workers,
        pin_memory=accelerator.device.type == "cuda",
        collate_fn=partial(collate, pad_id=captioner.pad_id),
    )
    with accelerator.autocast():
        for batch in Progress(
            loader, desc="encoding pictures", unit="batch", mininterval=1, disable=not accelerator.is_main_process
        ):
            left = [(batch.images, batch.pictures)]
            while left:
                images, numbers = left.pop()
                try:
                    pixels = captioner.normalise(images.to(accelerator.device, non_blocking=True))
                    encoded = encode_images(captioner.model, pixels)
                except torch.OutOfMemoryError:
                    if len(numbers) == 1:
                        raise
                    left += zip(images.chunk(2), numbers.chunk(2))
                    continue
                for name, values in zip(("features", "tokens"), encoded, strict=True):
                    maps[name][numbers] = values.to("cpu", DTYPE)
