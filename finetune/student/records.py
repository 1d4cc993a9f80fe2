"""Reinforced records as a student sees them: a view of the picture, texts, and what the teachers say of each of these.

B: records in a batch, K: texts of a record, L: context, S: picture side, V: views, D: embedding of all teachers joined
"""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from captioners.ranks import processes_here
from finetune.batching import CHECKED, Batch, TrainingPictures
from finetune.identity import Identity, InputHashes, picture_hash
from finetune.student.config import StudentConfig
from finetune.student.model import Student
from finetune.student.negatives import hard_negatives, is_negative
from finetune.student.teachers import Teachers
from finetune.tar_files import TarFiles, is_local_tar, with_tar_files
from imagetext.columns import is_caption_column
from imagetext.pixels import Pixels
from imagetext.readers.row_records import caption_columns, json_object
from imagetext.reinforced.embeddings import modern, unpack
from imagetext.reinforced.views import View, decode_stored, normalise, read_views, replay
from imagetext.sample import Record, Shard
from imagetext.shown import Progress
from imagetext.stores import join, read_bytes

RUN = "run.json"
COIN = 10_000  # sides: a probability is drawn to so many parts


def check_texts(shards: Sequence[Shard]) -> None:
    """Raises ValueError for sets whose `txt`, which `text_emb` is of, is a synthetic caption that is not read from them."""
    wrong = []
    for folder in dict.fromkeys(os.path.dirname(shard.path) for shard in shards if not is_local_tar(shard)):
        try:
            run = json_object(read_bytes(join(folder, RUN))).get("fingerprint")
        except (FileNotFoundError, ValueError):  # no run of ours
            continue
        if isinstance(run, Mapping) and run.get("text_from_synthetic"):
            wrong.append(folder)
    if wrong:
        raise ValueError(
            f"--input: {', '.join(wrong)}: made with --text-from-synthetic, and only tars on this machine say which "
            "caption that was; copy them here, or train with --text-weight 0"
        )


class Contents(NamedTuple):
    """What a student can be shown of a record; texts of each kind as (name of their embeddings, texts), negatives by column."""

    image: bytes | None
    views: list[View]
    texts: dict[str, list[tuple[str, Sequence[str]]]]
    embeddings: Mapping[str, Tensor]
    negatives: list[list[str]]


class Selection(NamedTuple):
    """What is shown of a record at a time: number of the view, texts with name and row of their embeddings, the negative if any."""

    view: int
    texts: list[tuple[str, int, str]]
    negative: str | None


class ReinforcedPictures(TrainingPictures):
    """Records that a student can be shown; `rejects` lists the others as (key, reason), `failed_before` known failures.

    `identities` tells which picture is which, `read` has a hash of what was read of each input, by its path.
    Records of tars on this machine are read when they come; those of stores, JSONL and Parquet are held in memory. All are read
    once before training begins. A record whose texts are of one kind only is left out where the other kind has a weight, and
    always shows that kind where a single text is drawn. Of the original captions those are drawn that `text_emb` is of; views are
    made at the student's own size. `weights`: how often each comes in a pass. `has_negative`: whether each has a hard negative.

    Raises ValueError where no record can be shown, or none has a negative and there are to be some.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        student: Student,
        config: StudentConfig,
        teachers: Teachers | None,
        *,
        quiet: bool = False,
    ):
        self.tokenizer, self.side, self.mean, self.std = student.tokenizer, student.side, student.mean, student.std
        self.kinds, self.single, self.columns = config.kinds, config.single_text is not None, config.columns
        self.teachers = teachers
        self.negatives = config.negatives if config.weight_of_negatives else None
        self.records: list[tuple[Record, TarFiles | None]] = []
        self.in_flight = Pixels(processes_here())
        self.identities: list[Identity] = []
        self.rejects: list[tuple[str, str]] = []
        self.failed_before: list[tuple[str, str]] = []  # in the run that wrote the input
        self.has_negative: list[bool] = []
        names: set[str] = set()  # of columns
        shown: set[str] = set()  # kinds of texts that some record has
        hashes = InputHashes()
        everything = ((shard.path, *read) for shard in shards for read in with_tar_files(shard))
        progress = Progress(desc="reading records", unit="record", mininterval=1, disable=quiet)
        with ThreadPoolExecutor() as pool:  # pictures decode without Python's lock
            while read := list(islice(everything, CHECKED)):
                looked_at = pool.map(self._look, (record for _, *record in read))
                for (path, sample, places), (error, picture, has) in zip(read, looked_at, strict=True):
                    if error:
                        (self.failed_before if sample.failed_before else self.rejects).append((sample.key, error))
                    else:
                        others = {
                            name: texts for name, texts in sample.columns.items() if is_negative(name, self.negatives)
                        }
                        light = Record(sample.key, None, sample.captions, others) if places else sample
                        self.records.append((light, places))
                        self.has_negative.append("negative" in has)
                        names, shown = names | sample.columns.keys(), shown | has
                        self.identities.append(Identity(sample.key, picture))
                        hashes.add(path, sample, picture)
                progress.update(len(read))
        progress.close()
        self.read = hashes.hexdigests()
        if not self.records:
            rejects = self.rejects + self.failed_before
            raise ValueError(
                f"no record that a student can be shown; the first of {len(rejects)} rejected: {rejects[:3]}"
            )
        if lacking := sorted(self.kinds.keys() - shown):
            raise ValueError(f"--single-text {config.single_text:g}: {self._lack(lacking[0])}, in any record")
        self._check_negatives(names)
        self.weights = np.ones(len(self.records))

    def __len__(self) -> int:
        return len(self.records)

    def _check_negatives(self, names: Collection[str]) -> None:
        """Raises ValueError where no record has a negative, or a column of these names holds captions that are drawn, too."""
        negative = {name for name in names if is_negative(name, self.negatives)}
        if both := sorted(name for name in negative if "synthetic" in self.kinds and self._is_drawn(name)):
            raise ValueError(
                f"--negatives {self.negatives!r} and --columns {self.columns!r} both name {', '.join(both)}: what is drawn as a "
                "caption is no negative"
            )
        if self.negatives and not any(self.has_negative):
            what = "no record has such a column"
            if negative:
                what = f"{', '.join(sorted(negative))} are empty, or only say what a caption says"
            raise ValueError(
                f"--negatives {self.negatives!r}: {what}; there are the columns {', '.join(sorted(names)) or '(none)'}"
            )

    def _is_drawn(self, column: str) -> bool:
        return is_caption_column(column) and bool(re.match(self.columns, column))

    def _lack(self, kind: str) -> str:
        """What to say where there are no texts of a kind."""
        without = "--single-text 1" if self.single else "--text-weight 0"
        return {
            "text": f"no original caption; {without} trains without them",
            "synthetic": f"no captions in columns like {self.columns!r}",
        }[kind]

    def _look(self, record: tuple[Record, TarFiles | None]) -> tuple[str, bytes, set[str]]:
        """Why a record cannot be trained on, "" where it can, its picture's hash, and the kinds of texts that it has."""
        sample, places = record
        try:
            text = places.read("txt") if places else {}
            contents = self.contents(replace(sample, members={**sample.members, **text}))
            with self.in_flight.held(contents.image):
                decode_stored(contents.image)
        except ValueError as error:
            return str(error), b"", set()
        has = {kind for kind, texts in {**contents.texts, "negative": contents.negatives}.items() if texts}
        return "", picture_hash(sample.image), has

    def encoded(self, index: int) -> bytes | None:
        """The picture's bytes."""
        return self.sample(index).image

    def leave_out(self, numbers: Collection[int]) -> None:
        """Takes the records of these numbers out of the set; ValueError where none would stay."""
        kept = [index for index in range(len(self)) if index not in numbers]
        if not kept:
            raise ValueError("every record of --input is held out, none is left to train on")
        self.records, self.weights = [self.records[index] for index in kept], self.weights[kept]
        self.identities = [self.identities[index] for index in kept]
        self.has_negative = [self.has_negative[index] for index in kept]

    def sample(self, index: int) -> Record:
        """The record with its files; ValueError where its tar is no more what it was."""
        sample, places = self.records[index]
        if places is None:
            return sample
        files = places.read("picture", "txt", "syn.json", "paug.json", *(("npz", "pth.gz") if self.teachers else ()))
        columns = {**sample.columns, **caption_columns(files.pop("syn.json", b"{}"))}
        return replace(sample, image=files.pop("picture"), columns=columns, members=files)

    def contents(self, sample: Record) -> Contents:
        """What there is of a record; ValueError says what is missing, or does not belong together."""
        if sample.error:
            raise ValueError(sample.error)
        views = read_views(sample.members.get("paug.json", b"{}"))
        columns = {name: texts for name, texts in sample.syn_text.items() if any(map(str.strip, texts))}
        text = sample.members.get("txt", b"").decode("utf-8", "replace").strip()
        originals, embeddings = [one for one in (text, *sample.captions) if one.strip()][:1], {}
        if self.teachers:
            originals, columns, embeddings = self._embeddings(sample, len(views), originals, columns, self.teachers)
        kinds = {
            "text": [("text_emb", originals)] if originals else [],
            "synthetic": [(f"{name}_emb", texts) for name, texts in columns.items() if re.match(self.columns, name)],
        }
        missing = [kind for kind in self.kinds if not kinds[kind]]
        if missing and (not self.single or len(missing) == len(self.kinds)):
            raise ValueError(self._lack(missing[0]))
        if not views:
            raise ValueError("paug.json: no views")
        return Contents(sample.image, views, kinds, embeddings, hard_negatives(sample, self.negatives, text))

    @staticmethod
    def _embeddings(
        sample: Record,
        views: int,
        originals: Sequence[str],
        columns: Mapping[str, Sequence[str]],
        teachers: Teachers,
    ) -> tuple[Sequence[str], Mapping[str, Sequence[str]], Mapping[str, Tensor]]:
        """The original captions and the columns that have embeddings, and these, from either layout."""
        embeddings = unpack(sample.members)
        newer = {name: texts for name, texts in columns.items() if f"{name}_emb" in embeddings}
        synthetic = 0 if newer else sum(map(len, columns.values()))
        if len(embeddings.get("text_emb", ())) - synthetic == len(sample.captions):
            originals = sample.captions
        columns = newer or columns
        rows = modern(
            embeddings, views, {"text_emb": originals, **{f"{name}_emb": texts for name, texts in columns.items()}}
        )
        widths = {values.shape[1] for values in rows.values()}
        if widths != {sum(teachers.dimensions)}:
            raise ValueError(
                f"embeddings of {', '.join(map(str, sorted(widths)))} numbers, and the teachers have "
                f"{' + '.join(map(str, teachers.dimensions))}"
            )
        return originals, columns, rows

    def length(self, index: int, draw: int) -> int:
        """Nothing tells texts apart: each is padded to the whole context."""
        return 0

    def drawn(self, contents: Contents, draw: int) -> Selection:
        """The view, a text of each kind, or of the kind that is drawn, and the negative, all by one draw.

        Views are drawn evenly, and so are columns, then the captions of a column that are not empty.
        """
        draw, view = divmod(draw, len(contents.views))
        kinds, texts = [kind for kind in self.kinds if contents.texts[kind]], []
        if self.single and len(kinds) > 1:
            draw, side = divmod(draw, COIN)
            kinds = ["synthetic" if side < self.kinds["synthetic"] * COIN else "text"]
        for kind in kinds:
            draw, number = divmod(draw, len(contents.texts[kind]))
            name, captions = contents.texts[kind][number]
            rows = [row for row, caption in enumerate(captions) if caption.strip()]
            draw, number = divmod(draw, len(rows))
            texts.append((name, rows[number], captions[rows[number]]))
        negative = None
        if contents.negatives:
            draw, number = divmod(draw, len(contents.negatives))
            negative = contents.negatives[number][draw % len(contents.negatives[number])]
        return Selection(view, texts, negative)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor, int, str, dict[str, Tensor]]:
        """What is drawn: pixels (3, S, S), token ids (K, L), number, key, and, with teachers, embeddings (D,) and (K, D).

        With negatives there are token ids (K + 1, L): the last are the negative's, or, of a record without one, of any text.
        """
        index, draw = item
        sample = self.sample(index)
        contents = self.contents(sample)
        view, drawn, negative = self.drawn(contents, draw)
        texts = [text for *_, text in drawn]
        with self.in_flight.held(contents.image):
            pixels = replay(contents.views[view], decode_stored(contents.image), self.side)
        pixels = normalise(pixels, self.mean, self.std)
        embeddings = {}
        if self.teachers:
            embeddings = {
                "image_emb": contents.embeddings["image_emb"][view],
                "text_emb": torch.stack([contents.embeddings[name][row] for name, row, _ in drawn]),
            }
        if self.negatives:
            embeddings["has_negative"] = torch.tensor(negative is not None)
            texts.append(texts[0] if negative is None else negative)
        return pixels, self.tokenizer(texts), index, sample.key, embeddings

    def collate(self, items: Sequence[tuple[Tensor, Tensor, int, str, dict[str, Tensor]]]) -> Batch:
        images, tokens, pictures, keys, embeddings = zip(*items)
        return Batch(
            torch.stack(images),
            torch.stack(tokens),
            torch.tensor(pictures),
            list(keys),
            {name: torch.stack([own[name] for own in embeddings]) for name in embeddings[0]},
        )
