"""Labelled pictures: their classes, and batches of pictures that are decoded while the model runs.

H, W: height and width in pixels
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from captioners.machine import free_cores
from finetune.identity import picture_hash
from imagetext.readers.labels import IMAGENET, Labels, imagenet_ids, keys_of_unique_names, read_class_names
from imagetext.readers.table_flags import Columns
from imagetext.sample import Record, Shard, decode_image
from imagetext.shown import Progress
from imagetext.sources import read_samples

Transform = Callable[[Image.Image], Tensor]  # -> (3, H, W)


class Classes(NamedTuple):
    """The classes of a set: for each, its label in the records, its name, and its number of pictures."""

    labels: Sequence[str]
    names: Sequence[str]
    pictures: Sequence[int]

    @property
    def indices(self) -> dict[str, int]:
        """The index of each class, by its label."""
        return {label: index for index, label in enumerate(self.labels)}


class LabelSurvey(NamedTuple):
    """The result of a first pass over a set: its classes, its number of pictures, and those that cannot be used."""

    classes: Classes
    pictures: int
    hashes: Set[bytes]  # those of the pictures that have a class
    failed: Sequence[tuple[str, str]]  # key and reason

    @property
    def usable(self) -> int:
        """The number of pictures that have a class."""
        return self.pictures - len(self.failed)


def read_labelled(
    input: Sequence[str], images: Sequence[str], *, table: Columns, label: str, class_names: str | None
) -> tuple[list[Shard], Mapping[str, str] | None]:
    """Return shards of records with labels, and the class name of each label, None if the labels are the names.

    Labels are kept as they are in the set, because two classes may have the same name, as in ImageNet. Only ImageNet's
    class numbers are replaced by WordNet ids.
    Raises ValueError if the set cannot be read, has no labels, or the class names cannot be read.
    """
    if class_names is None:
        names, labels = None, Labels(label)
    else:
        ids = imagenet_ids() if class_names == IMAGENET else {}
        names = {ids.get(number, number): name for number, name in read_class_names(class_names).items()}
        labels = Labels(label, {own_label: own_label for own_label in names}, keys_of_unique_names(names) | ids)
    return read_samples(input, images, labels=labels, columns=table, needs=("pictures",), distinct=False), names


def survey_labels(
    shards: Iterable[Iterable[Record]], names: Mapping[str, str] | None, *, flag: str = "--input", quiet: bool = False
) -> LabelSurvey:
    """Read all records once, without decoding pictures, and return their classes.

    names: the class name of each label, None if the labels are the names. Raises ValueError, which names the flag, if
    there are fewer than two classes.
    """
    counts, hashes, failed, pictures = dict.fromkeys(names or (), 0), set(), [], 0
    records = chain.from_iterable(shards)
    for record in Progress(records, desc="reading labels", unit="picture", mininterval=1, delay=2, disable=quiet):
        pictures += 1
        if record.error:
            failed.append((record.key, record.error))
        else:
            counts[record.label] = counts.get(record.label, 0) + 1
            hashes.add(picture_hash(record.image))
    labels = list(names or sorted(counts))
    if len(labels) < 2:
        if labels:
            problem = f"all pictures are of one class, {labels[0]!r}"
        else:
            problem = f"no picture has a label: {failed[0][1]}"
        raise ValueError(f"{flag}: {problem}; at least two classes are needed")
    class_names = [names[label] if names else label.replace("_", " ") for label in labels]
    classes = Classes(labels, class_names, pictures=[counts[label] for label in labels])
    return LabelSurvey(classes, pictures, hashes, failed=failed)


class PreparedPicture(NamedTuple):
    """A record with its picture preprocessed for each model; or no pixels and an `error` if it cannot be used."""

    record: Record
    pixels: Sequence[Tensor]
    error: str


def workers(num_workers: int | None) -> int:
    """Return the number of threads that decode: `num_workers`, or one for each core that this process may use."""
    return num_workers or free_cores()


def prepare_batches(
    records: Iterable[Record], transforms: Sequence[Transform], *, batch_size: int, threads: int
) -> Iterator[list[PreparedPicture]]:
    """Yield batches of records in their order, while the pictures of the next ones are decoded."""
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
