"""Labelled pictures: which classes there are, and the pictures of records, decoded beside the model.

H, W: height and width of the pixels
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from finetune.identity import picture_hash
from imagetext.readers.labels import IMAGENET, Labels, imagenet_ids, named_once, read_class_names
from imagetext.readers.table_flags import Columns
from imagetext.sample import Record, Shard, decode_image
from imagetext.shown import Progress
from imagetext.sources import read_samples

Transform = Callable[[Image.Image], Tensor]  # -> (3, H, W)


class Classes(NamedTuple):
    """The classes: what stands in records, and what they are called, one by one; and how many pictures each has."""

    labels: Sequence[str]
    names: Sequence[str]
    pictures: Sequence[int]


class LabelSurvey(NamedTuple):
    """What a first reading of the pictures found: their classes, how many there are, and those that cannot be used."""

    classes: Classes
    pictures: int
    hashes: Set[bytes]  # of the pictures that have a class
    failed: Sequence[tuple[str, str]]  # key, reason


def read_labelled(
    input: Sequence[str], images: Sequence[str], table: Columns, label: str, class_names: str | None
) -> tuple[list[Shard], Mapping[str, str] | None]:
    """The shards, whose records have labels, and the classes' names by these, None where the labels are the names.

    A label stays as it stands in the set, for two classes may have one name, as in ImageNet; ImageNet's are WordNet's ids, and
    numbers stand for them.
    Raises ValueError where the set cannot be read, has no labels, or the names cannot be read.
    """
    if class_names is None:
        names, labels = None, Labels(label)
    else:
        ids = imagenet_ids() if class_names == IMAGENET else {}
        names = {ids.get(one, one): name for one, name in read_class_names(class_names).items()}
        labels = Labels(label, {one: one for one in names}, named_once(names) | ids)
    return read_samples(input, images, labels=labels, columns=table, needs=("pictures",), distinct=False), names


def survey_labels(
    shards: Iterable[Iterable[Record]], names: Mapping[str, str] | None, *, flag: str = "--input", quiet: bool = False
) -> LabelSurvey:
    """Reads all records, and decodes none. Raises ValueError, which names the flag, where there are not two classes."""
    counts, hashes, failed, pictures = dict.fromkeys(names or (), 0), set(), [], 0
    records = (record for shard in shards for record in shard)
    for record in Progress(records, desc="reading labels", unit="picture", mininterval=1, delay=2, disable=quiet):
        pictures += 1
        if record.error:
            failed.append((record.key, record.error))
        else:
            counts[record.label] = counts.get(record.label, 0) + 1
            hashes.add(picture_hash(record.image))
    found = list(names or sorted(counts))
    if len(found) < 2:
        said = f"all pictures are of one class, {found[0]!r}" if found else f"no picture has a label: {failed[0][1]}"
        raise ValueError(f"{flag}: {said}; to tell classes apart takes two")
    called = [names[one] if names else one.replace("_", " ") for one in found]
    return LabelSurvey(Classes(found, called, [counts[one] for one in found]), pictures, hashes, failed)


class PreparedPicture(NamedTuple):
    """A record with its picture as each model takes it; none where it has an error or does not decode, with the reason."""

    record: Record
    pixels: Sequence[Tensor]
    error: str


def workers(asked: int | None) -> int:
    """The threads that decode: as asked for, else one a core that this process may use."""
    return asked or len(os.sched_getaffinity(0))


def prepare_batches(
    records: Iterable[Record], transforms: Sequence[Transform], batch_size: int, threads: int
) -> Iterator[list[PreparedPicture]]:
    """Batches of records in their order, while the next ones are decoded."""
    records, waiting = iter(records), deque[Future[PreparedPicture]]()
    with ThreadPoolExecutor(threads) as pool:
        while True:
            for record in islice(records, 2 * batch_size - len(waiting)):
                waiting.append(pool.submit(partial(_prepare, transforms), record))
            if not waiting:
                return
            yield [waiting.popleft().result() for _ in range(min(batch_size, len(waiting)))]


def _prepare(transforms: Sequence[Transform], record: Record) -> PreparedPicture:
    if record.error:
        return PreparedPicture(record, (), record.error)
    try:
        picture = decode_image(record.image)
    except ValueError as error:
        return PreparedPicture(record, (), str(error))
    return PreparedPicture(record, [transform(picture) for transform in transforms], "")
