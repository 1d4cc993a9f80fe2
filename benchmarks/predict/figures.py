"""The figures of a column, from data that users have: captions, a sample of pictures with references, and a CLIP
model.

P: pictures of the sample, N: captions of a column, E: dimension of embeddings, V: words of references, C: columns
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.evidence.sets import OF_ONE
from benchmarks.predict.design import PRIMARY, SAMPLE
from benchmarks.predict.information import ReferenceSearch, new_words, picture_bits, word_bits
from diversity.measures import catalogue
from diversity.measures.clip_score import embed_images
from diversity.measures.embedders import MINILM, Embedder, OpenClip, load_embedder
from diversity.measures.pairs import Groups
from diversity.measures.semantic import split_rows
from diversity.score import score_captions
from imagetext.outputs import write_file
from imagetext.sample import Record
from imagetext.shown import Progress
from imagetext.sources import read_records, read_samples

# Figures of the report's row; baselines come first.
OF_REPORT = {
    "length": catalogue.LENGTH,
    "cider_d": catalogue.CIDER,
    "clip_score": catalogue.CLIP_SCORE,
    "vendi": catalogue.VENDI[0],
    "self_cider": catalogue.SELF_CIDER,
    "degenerate": catalogue.DEGENERATE,
    "found_words": catalogue.FOUND_WORDS,
    "found_meaning": catalogue.FOUND_MEANING,
    "found_clip": catalogue.FOUND_CLIP,
    "facts_true": catalogue.PRECISION,
    "facts_found": catalogue.RECALL,
}

COMPETITORS = (  # of PRIMARY
    "bits_words",
    "bits_meaning",
    "bits_clip",
    "word_bits",
    "new_word_bits",
    "found_words",
    "found_meaning",
    "found_clip",
    "new_words",
    "degenerate",
    "index",
)
BASELINES = ("length", "cider_d", "clip_score", "vendi", "self_cider")
LOWER = {"degenerate"}  # figures for which lower counts as better
INDEX = ("bits_with_original", "new_word_bits", "degenerate")  # the index is the mean of their ranks in a world
LABELS = {
    "bits_with_original": "Bits with the original",
    "bits_words": "Bits, by words",
    "bits_meaning": "Bits, by meaning",
    "bits_clip": "Bits, by CLIP",
    "word_bits": "Bits, word by word",
    "new_word_bits": "New bits, word by word",
    "new_words": "New right words a further caption",
    "index": "Index",
    **{name: f"{measure.label} {measure.arrow}".strip() for name, measure in OF_REPORT.items()},
}


class Sample:
    """Pictures with references, and the models and counts that measure captions of them."""

    def __init__(self, records: Sequence[Record], references: Groups, clip: str):
        self.records, self.references, self.clip_name = records, references, clip
        self.originals = [record.captions[:1] for record in records]  # alt text, which students see in any case
        self.bits_of_originals = word_bits(self.originals, references)  # (V,)
        self.search, self.embedder, self.clip = ReferenceSearch(references), load_embedder(MINILM), OpenClip(clip)
        self.pictures, _ = embed_images(self.clip, [record.image for record in records])  # (P, E)
        meanings = self.embedder.encode([text for group in references for text in group])
        self.meanings = np.stack(
            [of_picture.mean(axis=0) for of_picture in split_rows(meanings, [*map(len, references)])]
        )

    def figures(self, captions: Groups) -> dict[str, float]:
        """Every figure of a column of captions of these pictures; lower values may be better, see `turned`."""
        texts = [text for group in captions for text in group]  # (N,)
        owners = np.repeat(np.arange(len(captions)), [len(group) for group in captions])
        beside = [" ".join([*self.originals[owner], text]) for owner, text in zip(owners, texts)]
        looked_at = Embedder(self.clip_name, self.clip.embed_texts).encode(texts)
        of_words = word_bits(captions, self.references)
        row = score_captions(
            {"column": captions},
            references=self.references,
            scenes=[record.meta["scene"] for record in self.records],
            images=[record.image for record in self.records],
            embedder=MINILM,
            clip=self.clip_name,
        ).rows["column"]
        values = {name: measure.value(row) for name, measure in OF_REPORT.items()}
        return {
            **{name: OF_ONE[OF_REPORT[name]] if value is None else value for name, value in values.items()},
            "bits_with_original": picture_bits(self.search.likeness(beside), owners),
            "bits_words": picture_bits(self.search.likeness(texts), owners),
            "bits_meaning": picture_bits(self.embedder.encode(texts) @ self.meanings.T, owners),
            "bits_clip": picture_bits(looked_at @ self.pictures.T, owners),
            "word_bits": float(of_words.sum()),
            "new_word_bits": float(np.maximum(of_words - self.bits_of_originals, 0).sum()),
            "new_words": new_words(captions, self.references),
        }


def write_figures(folder: Path, captioned: Path, pictures: str, columns: Sequence[str], clip: Path) -> None:
    """Measure these columns on the first captioned pictures, and write the figures of each column to a file."""
    files = {name: folder / f"{name}.json" for name in columns}
    if all(file.exists() for file in files.values()):
        return
    records = list(itertools.islice(read_records(str(captioned / "*.tar")), SAMPLE))
    sample = Sample(records, curated(pictures, records), str(clip))
    folder.mkdir(exist_ok=True)
    for name, file in Progress(files.items(), desc="figures", unit="column"):
        if not file.exists():
            figures = sample.figures([record.syn_text[f"syn_text_{name}"] for record in records])
            write_file(file, json.dumps(figures, indent=1))


def read_figures(folder: Path, columns: Sequence[str]) -> list[dict[str, float]]:
    """The figures of these columns, in the same order."""
    return [json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in columns]


def curated(pictures: str, records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Five curated captions of each picture of the set, which students never see."""
    captions_of = {
        sample.key: sample.captions
        for shard in read_samples([pictures.replace("captions=alt", "captions=short")])
        for sample in shard
    }
    return [captions_of[record.key] for record in records]


def turned(rows: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """All figures (C,) of the columns, with signs so that higher counts as better, and the index."""
    figures = {
        name: np.array([-row[name] if name in LOWER else row[name] for row in rows])
        for name in (PRIMARY, *COMPETITORS, *BASELINES)
        if name != "index"
    }
    return figures | {"index": np.mean([_ranks(figures[name]) for name in INDEX], axis=0)}


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks (C,) from the lowest value upwards; equal values get the mean of their ranks."""
    return (values[:, None] > values).sum(axis=1) + ((values[:, None] == values).sum(axis=1) - 1) / 2
