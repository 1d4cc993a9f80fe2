"""Reinforced records for training a student: a view of the picture, texts, and the teachers' embeddings of both.

B: records in a batch, K: texts of a record, L: context length, S: picture side in pixels, V: views,
D: embedding dimension of all teachers together
"""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from captioners.ranks import processes_here
from finetune.batching import CHECKED, Batch, TrainingPictures
from finetune.folder import RECORD_INDEX
from finetune.identity import Identity, InputHashes, picture_hash
from finetune.rejects import first_of
from finetune.student.config import StudentConfig
from finetune.student.index import RecordIndex, Survey
from finetune.student.model import Student
from finetune.student.negatives import hard_negatives, is_negative
from finetune.student.teachers import Teachers, view_sizes
from finetune.tar_files import TarFiles, with_tar_files
from imagetext.columns import is_caption_column
from imagetext.pixels import Pixels
from imagetext.readers.row_records import caption_columns
from imagetext.reinforced.embeddings import to_newer_layout, unpack
from imagetext.reinforced.views import View, check_views, decode_stored, normalise, read_views, replay
from imagetext.sample import Record, Shard
from imagetext.shown import Progress

COIN_SIDES = 10_000  # the resolution of a probability when it is drawn


class Contents(NamedTuple):
    """All that a student can be trained on from one record."""

    image: bytes | None  # encoded
    views: list[View]
    texts: dict[str, list[tuple[str, Sequence[str]]]]  # kind -> (name of the texts' embeddings, texts) for each column
    embeddings: Mapping[str, Tensor]
    negatives: list[list[str]]  # hard negatives of each column


class Selection(NamedTuple):
    """The part of a record that one draw selects."""

    view: int
    texts: list[tuple[str, int, str]]  # name and row of the text's embedding, and the text
    negative: str | None


class ReinforcedPictures(TrainingPictures):
    """The records of some shards that a student can be trained on.

    All records are checked once before training begins. Those in tars on this machine are read again when they are
    needed; those of stores, JSONL and Parquet stay in memory. Views are made at the student's picture size.
    What the run's index has of a tar is not read and checked again.

    If both kinds of texts have a weight, a record with only one kind cannot be used. If a single text is drawn, such a
    record always shows the kind that it has. Original captions are drawn only if `text_emb` has an embedding of them.

    rejects: (key, reason) of each record that cannot be used.
    failed_before: (key, reason) of each record that the input itself marks as failed.
    identities: key and hash of each picture.
    input_hashes: for each input path, a hash of what was read from it.
    index: what was found in the tars; to be written once the run has its folder.
    drawn_for: the side in pixels for which each record's views were drawn.
    weights: how often each record comes in a pass. has_negative: whether each record has a hard negative.

    Raises ValueError if no record can be used, or if no record has a hard negative although the configuration wants
    some.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        student: Student,
        config: StudentConfig,
        *,
        teachers: Teachers | None,
        quiet: bool = False,
    ):
        self.tokenizer, self.side, self.mean, self.std = student.tokenizer, student.side, student.mean, student.std
        self.kinds, self.single, self.columns = config.kinds, config.single_text is not None, config.columns
        self.teachers = teachers
        self.negatives = config.negatives if config.weight_of_negatives else None
        self.in_flight = Pixels(processes_here())
        self.index = RecordIndex(config.output / RECORD_INDEX, settings=self._decisive(), anew=config.overwrite)
        self.input_hashes: dict[str, str] = {}
        self.drawn_for: list[int] = []
        sizes = view_sizes(shards)
        found, hashes = Survey(), InputHashes()
        progress = Progress(desc="reading records", unit="record", mininterval=1, disable=quiet)
        with ThreadPoolExecutor() as pool:  # decoding releases Python's global lock
            for shard in shards:
                survey = self.index.survey(shard, partial(self._read, pool=pool, hashes=hashes, progress=progress))
                found.add(survey)
                self.drawn_for += [sizes[os.path.dirname(shard.path)]] * len(survey.records)
                if survey.input_hash:
                    self.input_hashes[shard.path] = survey.input_hash
        progress.close()
        self.records, self.identities, self.has_negative = found.records, found.identities, found.has_negative
        self.rejects, self.failed_before = found.rejects, found.failed_before
        if not self.records:
            unusable = first_of(self.rejects + self.failed_before)
            raise ValueError(f"--input: holds no record that a student can be trained on{unusable}")
        if lacking := sorted(self.kinds.keys() - found.kinds):
            raise ValueError(f"--single-text {config.single_text:g}: {self._missing_texts(lacking[0])}, in any record")
        self._check_negatives(found.columns)
        self.weights = np.ones(len(self.records))

    def __len__(self) -> int:
        return len(self.records)

    def _decisive(self) -> dict[str, Any]:
        """Return the settings that decide which records can be used, and what is kept of them."""
        return {
            "kinds": sorted(self.kinds),
            "single": self.single,
            "columns": self.columns,
            "negatives": self.negatives,
            "dimensions": list(self.teachers.dimensions) if self.teachers else None,
        }

    def _read(self, shard: Shard, *, pool: ThreadPoolExecutor, hashes: InputHashes, progress: Progress) -> Survey:
        """Read and check the records of a shard, and add them to the hash of its path."""
        survey, entries = Survey(), with_tar_files(shard)
        while batch := list(islice(entries, CHECKED)):
            checks = pool.map(self._check, batch)
            for (sample, tar_files), (error, picture, kinds) in zip(batch, checks, strict=True):
                if error:
                    (survey.failed_before if sample.failed_before else survey.rejects).append((sample.key, error))
                else:
                    survey.records.append((self._without_files(sample) if tar_files else sample, tar_files))
                    survey.identities.append(Identity(sample.key, picture))
                    survey.has_negative.append("negative" in kinds)
                    survey.columns |= sample.columns.keys()
                    survey.kinds |= kinds
                    hashes.add(shard.path, sample, picture)
            progress.update(len(batch))
        survey.input_hash = hashes.hexdigest(shard.path)
        return survey

    def _without_files(self, sample: Record) -> Record:
        """Return the record without what is read again from its tar: without picture, files, and caption columns."""
        negatives = {name: texts for name, texts in sample.columns.items() if is_negative(name, self.negatives)}
        return Record(sample.key, None, sample.captions, columns=negatives)

    def _check_negatives(self, column_names: Collection[str]) -> None:
        """Raise ValueError if no record has a negative, or if a column of negatives is also drawn from as captions."""
        negative = {name for name in column_names if is_negative(name, self.negatives)}
        if both := sorted(name for name in negative if "synthetic" in self.kinds and self._is_drawn(name)):
            raise ValueError(
                f"--negatives {self.negatives!r} and --columns {self.columns!r} both name {', '.join(both)}: a column "
                "cannot hold both captions and negatives"
            )
        if self.negatives and not any(self.has_negative):
            problem = "no record has such a column"
            if negative:
                problem = f"{', '.join(sorted(negative))} are empty, or only repeat captions"
            raise ValueError(
                f"--negatives {self.negatives!r}: {problem}; the set has the columns "
                f"{', '.join(sorted(column_names)) or '(none)'}"
            )

    def _is_drawn(self, column: str) -> bool:
        """Return whether captions are drawn from a column of this name."""
        return is_caption_column(column) and bool(re.match(self.columns, column))

    def _missing_texts(self, kind: str) -> str:
        """Return a message that there are no texts of this kind."""
        without = "--single-text 1" if self.single else "--text-weight 0"
        return {
            "text": f"no original caption; {without} trains without them",
            "synthetic": f"no captions in columns like {self.columns!r}",
        }[kind]

    def _check(self, record: tuple[Record, TarFiles | None]) -> tuple[str, bytes, set[str]]:
        """Return why a record cannot be used, or "", the hash of its picture, and the kinds of texts that it has."""
        sample, tar_files = record
        try:
            text = tar_files.read("txt") if tar_files else {}
            contents = self.contents(replace(sample, members={**sample.members, **text}))
            with self.in_flight.held(contents.image):
                check_views(contents.views, decode_stored(contents.image).size)
        except ValueError as error:
            return str(error), b"", set()
        kinds = {kind for kind, texts in contents.texts.items() if texts}
        if contents.negatives:
            kinds.add("negative")
        return "", picture_hash(sample.image), kinds

    def encoded(self, index: int) -> bytes | None:
        """Return the bytes of the picture."""
        return self.sample(index).image

    def leave_out(self, excluded: Collection[int]) -> None:
        """Remove the records of these indices from the set; raises ValueError if none would remain."""
        remaining = [index for index in range(len(self)) if index not in excluded]
        if not remaining:
            raise ValueError("every record of --input is held out, none is left to train on")
        self.records, self.weights = [self.records[index] for index in remaining], self.weights[remaining]
        self.identities = [self.identities[index] for index in remaining]
        self.has_negative = [self.has_negative[index] for index in remaining]
        self.drawn_for = [self.drawn_for[index] for index in remaining]

    def sample(self, index: int) -> Record:
        """Return the record with its files; raises ValueError if its tar has changed so that it cannot be read."""
        sample, tar_files = self.records[index]
        if tar_files is None:
            return sample
        embedding_files = ("npz", "pth.gz") if self.teachers else ()
        files = tar_files.read("picture", "txt", "syn.json", "paug.json", *embedding_files)
        errors: list[str] = []
        columns = {**sample.columns, **caption_columns(files.pop("syn.json", b"{}"), errors)}
        if errors:
            raise ValueError("; ".join(errors))
        return replace(sample, image=files.pop("picture"), columns=columns, members=files)

    def contents(self, sample: Record) -> Contents:
        """Return the contents of a record; raises ValueError if something is missing or does not fit together."""
        if sample.error:
            raise ValueError(sample.error)
        if sample.image is None:  # said first, because published sets lack original captions, too
            raise ValueError("missing picture")
        views = read_views(sample.members.get("paug.json"))
        columns = {name: texts for name, texts in sample.syn_text.items() if any(map(str.strip, texts))}
        text = sample.members.get("txt", b"").decode("utf-8", "replace").strip()
        originals, embeddings = [caption for caption in (text, *sample.captions) if caption.strip()][:1], {}
        if self.teachers:
            originals, columns, embeddings = self._embeddings(
                sample, len(views), originals, columns=columns, teachers=self.teachers
            )
        kinds = {
            "text": [("text_emb", originals)] if originals else [],
            "synthetic": [(f"{name}_emb", texts) for name, texts in columns.items() if re.match(self.columns, name)],
        }
        missing = [kind for kind in self.kinds if not kinds[kind]]
        if missing and (not self.single or len(missing) == len(self.kinds)):
            raise ValueError(self._missing_texts(missing[0]))
        if not views:
            raise ValueError("paug.json: no views")
        negatives = hard_negatives(sample, self.negatives, text)
        return Contents(sample.image, views, texts=kinds, embeddings=embeddings, negatives=negatives)

    @staticmethod
    def _embeddings(
        sample: Record,
        views: int,
        originals: Sequence[str],
        *,
        columns: Mapping[str, Sequence[str]],
        teachers: Teachers,
    ) -> tuple[Sequence[str], Mapping[str, Sequence[str]], Mapping[str, Tensor]]:
        """Return the original captions and the columns that have embeddings, and the embeddings.

        In the newer layout each column has embeddings of its own; in the older one, `text_emb` also has those of the
        synthetic captions. Raises ValueError if their width is not that of the teachers together.
        """
        embeddings = unpack(sample.members)
        columns_with_own = {name: texts for name, texts in columns.items() if f"{name}_emb" in embeddings}
        synthetic = 0 if columns_with_own else sum(map(len, columns.values()))
        embedded_originals = len(embeddings.get("text_emb", ())) - synthetic
        if embedded_originals == len(sample.captions) > 1:  # a single embedding is that of `txt`
            originals = sample.captions
        columns = columns_with_own or columns
        texts_by_name = {"text_emb": originals, **{f"{name}_emb": texts for name, texts in columns.items()}}
        rows = to_newer_layout(embeddings, views, texts_by_name)
        widths = {values.shape[1] for values in rows.values()}
        if widths != {sum(teachers.dimensions)}:
            raise ValueError(
                f"embeddings of {', '.join(map(str, sorted(widths)))} numbers, but the teachers have "
                f"{' + '.join(map(str, teachers.dimensions))}"
            )
        return originals, columns, rows

    def length(self, index: int, draw: int) -> int:
        """Return 0, because all texts are padded to the whole context and have the same length."""
        return 0

    def select(self, contents: Contents, draw: int) -> Selection:
        """Return what a draw selects of a record: the view, the texts, and the negative.

        There is a text of each kind, or one of a kind that is drawn, too. Views are drawn uniformly; so are columns,
        and then the captions of a column that are not empty.
        """
        draw, view = divmod(draw, len(contents.views))
        kinds, texts = [kind for kind in self.kinds if contents.texts[kind]], []
        if self.single and len(kinds) > 1:
            draw, side = divmod(draw, COIN_SIDES)
            kinds = ["synthetic" if side < self.kinds["synthetic"] * COIN_SIDES else "text"]
        for kind in kinds:
            draw, column = divmod(draw, len(contents.texts[kind]))
            name, captions = contents.texts[kind][column]
            rows = [row for row, caption in enumerate(captions) if caption.strip()]
            draw, choice = divmod(draw, len(rows))
            texts.append((name, rows[choice], captions[rows[choice]]))
        negative = None
        if contents.negatives:
            draw, column = divmod(draw, len(contents.negatives))
            negatives = contents.negatives[column]
            negative = negatives[draw % len(negatives)]
        return Selection(view, texts, negative)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor, int, str, dict[str, Tensor]]:
        """Return pixels (3, S, S), token ids (K, L), the record's index and key, and embeddings, for (index, draw).

        With teachers, the embeddings are (D,) for the picture and (K, D) for the texts. With negatives, token ids are
        (K + 1, L): the last row is the negative, or, if the record has none, any other text.
        """
        index, draw = item
        sample = self.sample(index)
        contents = self.contents(sample)
        view, selected, negative = self.select(contents, draw)
        texts = [text for _, _, text in selected]
        with self.in_flight.held(contents.image):
            image = decode_stored(contents.image)
            pixels = replay(contents.views[view], image, self.side, self.drawn_for[index])
        pixels = normalise(pixels, self.mean, self.std)
        embeddings = {}
        if self.teachers:
            embeddings = {
                "image_emb": contents.embeddings["image_emb"][view],
                "text_emb": torch.stack([contents.embeddings[name][row] for name, row, _ in selected]),
            }
        if self.negatives:
            embeddings["has_negative"] = torch.tensor(negative is not None)
            texts.append(texts[0] if negative is None else negative)
        return pixels, self.tokenizer(texts), index, sample.key, embeddings

    def collate(self, items: Sequence[tuple[Tensor, Tensor, int, str, dict[str, Tensor]]]) -> Batch:
        images, tokens, pictures, keys, embeddings = zip(*items)
        return Batch(
            images=torch.stack(images),
            tokens=torch.stack(tokens),
            pictures=torch.tensor(pictures),
            keys=list(keys),
            embeddings={name: torch.stack([item[name] for item in embeddings]) for name in embeddings[0]},
        )
