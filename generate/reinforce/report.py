"""What teachers know of a reinforced set: do they agree, do they find a picture's caption again, and which logit scale fits.

All is of stored embeddings; no model is needed. A picture is the mean of its views. Captions with the same words are one answer.

Dimensions: R pictures, A answers: captions of different words, D embedding of all teachers joined.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from imagetext.outputs import write_file
from imagetext.reinforced.embeddings import unpack
from imagetext.sample import Record
from imagetext.shards import read_markers
from imagetext.shown import Progress, say
from imagetext.sources import read_records
from imagetext.stores import join, plain_path

REPORT = "report.json"
COMPARED = 2000  # records, about, from all over the set
SCALES = tuple(map(float, range(10, 101, 10)))
RANKS = (1, 5)  # at which a caption or picture counts as found
ENSEMBLE = "ensemble"


def write_report(folder: str | os.PathLike, teachers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Measure the set in a folder, print a table and write `report.json`; `teachers` as `config.json` lists them.

    Raises: ValueError where no record has embeddings of all these teachers.
    """
    pictures, captions = read_set(folder, sum(teacher["dimension"] for teacher in teachers))
    report = {
        "records": len(pictures),
        "captions": {name: measure(pictures, texts, rows, teachers) for name, (texts, rows) in captions.items()},
    }
    write_file(join(plain_path(folder), REPORT), json.dumps(report, indent=1).encode())
    say(*table(report))
    return report


def read_set(folder: str | os.PathLike, dimension: int) -> tuple[Tensor, dict[str, tuple[list[str], Tensor]]]:
    """Pictures (R, D); and for `txt` and each column the first caption of every picture, and its embedding (R, D).

    Pictures without a caption of a kind have an empty text there, and no direction.
    """
    pictures, texts, rows, found = [], [], [], []
    for record in evenly(folder):
        embeddings = unpack(record.members)
        if "image_emb" not in embeddings:  # it failed
            continue
        if embeddings["image_emb"].shape[1] != dimension:
            raise ValueError(
                f"{folder}: {record.key}: embeddings of {embeddings['image_emb'].shape[1]} dimensions, its "
                f"teachers have {dimension}"
            )
        pictures.append(embeddings["image_emb"].mean(0))
        of_columns = {name: (of[0], embeddings.get(f"{name}_emb")) for name, of in record.syn_text.items()}
        original = next((text for text in record.captions if text.strip()), "")
        found.append({"txt": (original, embeddings.get("text_emb")), **of_columns})
    if not pictures:
        raise ValueError(f"{folder}: no record has embeddings")
    nothing, captions = torch.zeros(dimension), {}
    for name in dict.fromkeys(name for of in found for name in of):
        some = [of.get(name, ("", None)) for of in found]
        texts = [text if rows is not None and len(rows) else "" for text, rows in some]
        rows = torch.stack([rows[0] if text else nothing for text, (_, rows) in zip(texts, some)])
        captions[name] = texts, rows
    return torch.stack(pictures), {name: of for name, of in captions.items() if any(of[0])}


def evenly(folder: str | os.PathLike) -> Iterator[Record]:
    """About COMPARED records of the finished shards: the first few of each, or of every so-manieth shard."""
    markers = list(read_markers(folder).values())
    markers = markers[:: -(-len(markers) // COMPARED) or 1]
    for marker in Progress(markers, desc="reading embeddings", unit="shard", disable=None):
        yield from islice(
            read_records(join(plain_path(folder), marker["file"]), check=False), -(-COMPARED // len(markers))
        )


def measure(
    pictures: Tensor, texts: Sequence[str], rows: Tensor, teachers: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Agreement, retrieval and the sweep of logit scales on pictures (R, D) and a caption of each (R, D)."""
    kept = [number for number, text in enumerate(texts) if text]
    answers = {text: number for number, text in enumerate(dict.fromkeys(texts[at] for at in kept))}
    wanted = torch.tensor([answers[texts[at]] for at in kept])  # (R,), the caption of each picture
    first = [kept[wanted.tolist().index(answer)] for answer in range(len(answers))]
    dimensions = [teacher["dimension"] for teacher in teachers]
    cosines = {
        teacher["name"]: F.normalize(of, dim=1) @ F.normalize(to, dim=1).T
        for teacher, of, to in zip(
            teachers, pictures[kept].split(dimensions, 1), rows[first].split(dimensions, 1), strict=True
        )
    }
    scales = {teacher["name"]: teacher["logit_scale"] for teacher in teachers}
    results = {name: retrieval(cosine, wanted) for name, cosine in cosines.items()}
    if len(teachers) > 1:
        results[ENSEMBLE] = ensemble_retrieval([scales[name] * cosine for name, cosine in cosines.items()], wanted)
    return {
        "pictures": len(kept),
        "answers": len(answers),
        "retrieval": results,
        "agreement": [
            {"teachers": [one, other], **agreement(scales[one] * cosines[one], scales[other] * cosines[other])}
            for one, other in combinations(cosines, 2)
        ],
        "logit_scale": {name: sweep(cosine, wanted, scales[name]) for name, cosine in cosines.items()},
    }


def retrieval(scores: Tensor, wanted: Tensor) -> dict[str, float]:
    """Share of pictures whose caption is among the best k of all, by scores (R, A), and of captions with one of their pictures.

    Of wrong ones with the same score half come before, so that a teacher that tells nothing apart finds nothing.
    """
    wrong = wanted[:, None] != torch.arange(scores.shape[1])  # (R, A)
    own = scores.gather(1, wanted[:, None])  # (R, 1)
    theirs = scores.masked_fill(wrong, -torch.inf).amax(0)  # (A,), of the best of their pictures
    before = {
        way: ((scores > right) & wrong).sum(over) + ((scores == right) & wrong).sum(over) / 2
        for way, right, over in (("image_to_text", own, 1), ("text_to_image", theirs, 0))
    }
    return {f"{way}@{k}": (rank < k).float().mean().item() for way, rank in before.items() for k in RANKS}


def ensemble_retrieval(logits: Sequence[Tensor], wanted: Tensor) -> dict[str, float]:
    """As `retrieval`, by the mean of the teachers' softmax: what a student is taught."""
    to_text = retrieval(torch.stack([one.softmax(1) for one in logits]).mean(0), wanted)
    to_image = retrieval(torch.stack([one.softmax(0) for one in logits]).mean(0), wanted)
    return {name: (to_text if name.startswith("image") else to_image)[name] for name in to_text}


def agreement(one: Tensor, other: Tensor) -> dict[str, float]:
    """How often two teachers choose the same caption for a picture, and the mean Jensen-Shannon divergence (nats) of their
    softmax over captions, from logits (R, A) each."""
    same = (one.argmax(1) == other.argmax(1)).float().mean().item()
    p, q = one.log_softmax(1), other.log_softmax(1)
    middle = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0))
    divergence = ((p.exp() * (p - middle)).sum(1) + (q.exp() * (q - middle)).sum(1)) / 2
    return {"same_top1": same, "js_divergence": divergence.mean().item()}


def sweep(cosines: Tensor, wanted: Tensor, own: float) -> dict[str, Any]:
    """For logit scales, the teacher's own among them: nats that a picture's caption costs, and how many captions share the
    probability (perplexity), from cosines (R, A); and the scale at which the caption costs least."""
    rows = []
    for scale in sorted({*SCALES, own}):
        logs = (scale * cosines).log_softmax(1)
        rows.append(
            {
                "logit_scale": scale,
                "nats": -logs.gather(1, wanted[:, None]).mean().item(),
                "perplexity": (-(logs.exp() * logs).sum(1)).exp().mean().item(),
            }
        )
    return {"own": own, "best": min(rows, key=lambda row: row["nats"])["logit_scale"], "sweep": rows}


def table(report: Mapping[str, Any]) -> list[str]:
    """The report as lines of text."""
    lines = [f"{report['records']:,} records compared"]
    for name, found in report["captions"].items():
        lines += [
            "",
            f"{name}: {found['pictures']:,} pictures, {found['answers']:,} captions; found among the first 1 and 5",
            f"  {'teacher':40}   text of a picture   picture of a text  own scale  best scale",
        ]
        for teacher, of in found["retrieval"].items():
            shares = "".join(f"{share:10.1%}" for share in of.values())
            scale = found["logit_scale"].get(teacher)
            lines.append(
                f"  {teacher[-40:]:40}{shares}" + (f"{scale['own']:11.4g}{scale['best']:12.4g}" if scale else "")
            )
        lines += [
            f"  {' and '.join(pair['teachers'])}: the same caption first for {pair['same_top1']:.1%} of the pictures, "
            f"Jensen-Shannon divergence {pair['js_divergence']:.3f} nats"
            for pair in found["agreement"]
        ]
    return lines
