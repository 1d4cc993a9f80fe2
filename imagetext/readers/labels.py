"""The class of a picture: where it is found in a record, and the names of the classes."""

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

from imagetext import limits
from imagetext.fields import moved_fields
from imagetext.keys import text_of
from imagetext.sample import Record, Shard
from imagetext.stores import plain_path, read_bytes

FOLDER, IMAGENET = "folder", "imagenet"
LOOKED_AT = 20  # first records of a shard, at least one of which must have a label


@dataclass(frozen=True)
class Labels:
    """Adds labels to records. A record without a valid label gets an error.

    place: where the label is found: `folder`, the folder that a picture lies in; or the name of a tar's member
        (`cls`), a field or a column.
    names: the names of the classes, by the values that are found there; None if the values are the names.
    aliases: other values that may be found there, with the key of `names` that each stands for.
    """

    place: str
    names: Mapping[str, str] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, record: Record) -> Record:
        if record.error:
            return record
        label = self._value(record)
        if label is None:
            return replace(record, error=f"no label: {self._why_missing(record)}")
        if label not in (self.names or ()):
            label = self.aliases.get(label, label)
        if self.names is not None and label not in self.names:
            return replace(
                record,
                error=f"no label: {label!r} is none of the {len(self.names):,} classes, which begin with "
                f"{', '.join(map(repr, islice(self.names, 3)))}",
            )
        return replace(record, label=label if self.names is None else self.names[label])

    def check(self, shard: Shard) -> None:
        """Raise ValueError, with what there is instead, if none of the shard's first records has a label."""
        looked_at = []
        for record in islice(shard, LOOKED_AT):
            if record.label is not None:
                return
            looked_at.append(record)
        if looked_at:
            first = looked_at[0]
            others = [*first.members, *(name for name in first.meta if name not in ("uid", "source"))]
            hint = f"; --label may be {' or '.join(map(repr, others))}" if self.place == FOLDER and others else ""
            raise ValueError(
                f"{shard.path}: --label {self.place}: the first {len(looked_at)} records have {first.error}{hint}"
            )

    def _value(self, record: Record) -> str | None:
        """The value at the label's place in a record, as text; None if there is none."""
        if self.place == FOLDER:
            return record.key.rpartition("/")[0].rpartition("/")[2] or None
        if self.place in record.members:
            return record.members[self.place].decode("utf-8", "replace").strip() or None
        value = {**record.meta, **moved_fields(record.meta)}.get(self.place)
        is_name = isinstance(value, str | int) or isinstance(value, float) and value.is_integer()
        return text_of(value).strip() or None if is_name else None

    def _why_missing(self, record: Record) -> str:
        if self.place == FOLDER:
            return f"{record.key!r} lies in no folder"
        files, fields = (", ".join(map(repr, names)) or "none" for names in (record.members, record.meta))
        return f"no {self.place!r} with a text or a whole number; there are the files {files} and the fields {fields}"


def keys_of_unique_names(names: Mapping[str, str]) -> dict[str, str]:
    """The keys of the names that only one class has, by name, for sets with names of classes instead of numbers."""
    times = Counter(names.values())
    return {name: key for key, name in names.items() if times[name] == 1}


def imagenet_ids() -> dict[str, str]:
    """The WordNet ids of ImageNet's classes, by number. Its folders have these names; `n01440764` is the first."""
    from timm.data import ImageNetInfo  # imported late, because it imports torch

    return {str(number): name for number, name in enumerate(ImageNetInfo().label_names())}


def read_class_names(names: str | os.PathLike) -> dict[str, str]:
    """Read the names of classes from a file: one name on each line, by number, or lines of `ID<tab>NAME`, by id.

    A WordNet id may have a blank instead of the tab, as in ImageNet's `LOC_synset_mapping.txt`.

    `imagenet` instead of a file stands for open_clip's names of ImageNet's classes.

    Raises ValueError if there is no such file, or it has another form.
    """
    if str(names) == IMAGENET:
        from open_clip import IMAGENET_CLASSNAMES  # imported late, because it imports torch

        return {str(number): name for number, name in enumerate(IMAGENET_CLASSNAMES)}
    path = plain_path(names)
    try:
        all_lines = read_bytes(path, limits.DOCUMENT).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"--class-names {path}: cannot be read: {error}") from error
    lines = [re.sub(r"^(n\d{8}) ", r"\1\t", line) for line in all_lines if line.strip()]
    pairs = [tuple(part.strip() for part in line.split("\t")) for line in lines]
    if lines and all(len(pair) == 1 for pair in pairs):
        first_blank = next((number for number, line in enumerate(all_lines) if not line.strip()), len(lines))
        if first_blank < len(lines):  # blank lines at the end do no harm
            raise ValueError(
                f"--class-names {path}: line {first_blank + 1:,} is blank, so it is not known which number each of "
                "the names after it has; remove the line, or give lines of ID<tab>NAME"
            )
        return {str(number): name for number, (name,) in enumerate(pairs)}
    if not lines:
        raise ValueError(f"--class-names {path}: is empty")
    for line, pair in zip(lines, pairs):
        if len(pair) != 2 or not all(pair):
            raise ValueError(f"--class-names {path}: {line!r} is not ID<tab>NAME, as other lines are")
    counts = Counter(class_id for class_id, _ in pairs)
    if repeated := [class_id for class_id, count in counts.items() if count > 1]:
        raise ValueError(f"--class-names {path}: {', '.join(repeated)} named twice")
    return {class_id: name for class_id, name in pairs}
