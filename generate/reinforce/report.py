"""The report on the teachers of a reinforced set: agreement, retrieval, and the best logit scale.

Everything is computed from the stored embeddings, without a model. The embedding of a picture is the mean over its
views. Equal captions count as one answer.

Dimensions: R pictures, A answers (different captions), D embedding of all teachers joined.
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
COMPARED = 2000  # about how many records are compared, from all over the set
SCALES = tuple(map(float, range(10, 101, 10)))
RANKS = (1, 5)  # a caption or picture counts as found among so many best ones
ENSEMBLE = "ensemble"


def write_report(folder: str | os.PathLike, teachers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Measure the set in a folder, print a table, write `report.json`, and return the report.

    teachers: as `config.json` lists them.
    Raises: ValueError where no record has embeddings of all these teachers.
    """
    pictures, captions = read_set(folder, sum(teacher["dimension"] for teacher in teachers))
    report = {
        "records": len(pictures),
        "captions": {
            name: measure(pictures, texts, rows, teachers=teachers) for name, (texts, rows) in captions.items()
        },
    }
    write_file(join(plain_path(folder), REPORT), json.dumps(report, indent=1).encode())
    say(*table(report))
    return report


def read_set(folder: str | os.PathLike, dimension: int) -> tuple[Tensor, dict[str, tuple[list[str], Tensor]]]:
    """Return the embeddings of the pictures (R, D), and the texts and embeddings (R, D) of their captions.

    The captions are the first of each column and, under "txt", the original. Where a picture has none, the text is
    empty and the embedding is zero.
    """
    pictures, captions_of_pictures = [], []
    for record in sample_records(folder):
        embeddings = unpack(record.members)
        if "image_emb" not in embeddings:  # the record failed
            continue
        if embeddings["image_emb"].shape[1] != dimension:
            raise ValueError(
                f"{folder}: {record.key}: embeddings of {embeddings['image_emb'].shape[1]} dimensions, its "
                f"teachers have {dimension}"
            )
        pictures.append(embeddings["image_emb"].mean(0))
        captions = {"txt": (record.first_text() or "", embeddings.get("text_emb"))}
        for name, texts in record.syn_text.items():
            captions[name] = texts[0], embeddings.get(f"{name}_emb")
        captions_of_pictures.append(captions)
    if not pictures:
        raise ValueError(f"{folder}: no record has embeddings")
    result = {}
    for name in dict.fromkeys(name for captions in captions_of_pictures for name in captions):
        texts, rows = [], []
        for captions in captions_of_pictures:
            text, embedded = captions.get(name, ("", None))
            if text and embedded is not None and len(embedded):
                texts.append(text)
                rows.append(embedded[0])
            else:
                texts.append("")
                rows.append(torch.zeros(dimension))
        if any(texts):
            result[name] = texts, torch.stack(rows)
    return torch.stack(pictures), result


def sample_records(folder: str | os.PathLike) -> Iterator[Record]:
    """Yield about COMPARED records: the first few of each finished shard, or of every n-th of many shards."""
    markers = list(read_markers(folder).values())
    markers = markers[:: -(-len(markers) // COMPARED) or 1]
    for marker in Progress(markers, desc="reading embeddings", unit="shard", disable=None):
        yield from islice(
            read_records(join(plain_path(folder), marker["file"]), check=False), -(-COMPARED // len(markers))
        )


def measure(
    pictures: Tensor, texts: Sequence[str], rows: Tensor, *, teachers: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Measure agreement, retrieval and logit scales.

    pictures: embeddings (R, D). texts: a caption of each picture, "" for those without one.
    rows: the embedding (R, D) of that caption.
    """
    with_text = [index for index, text in enumerate(texts) if text]
    answer_of = {text: answer for answer, text in enumerate(dict.fromkeys(texts[index] for index in with_text))}
    answers = torch.tensor([answer_of[texts[index]] for index in with_text])  # (R,), the answer of each picture
    first_index = [with_text[answers.tolist().index(answer)] for answer in range(len(answer_of))]
    dimensions = [teacher["dimension"] for teacher in teachers]
    picture_parts = pictures[with_text].split(dimensions, 1)
    answer_parts = rows[first_index].split(dimensions, 1)
    cosines = {
        teacher["name"]: F.normalize(picture_part, dim=1) @ F.normalize(answer_part, dim=1).T
        for teacher, picture_part, answer_part in zip(teachers, picture_parts, answer_parts, strict=True)
    }
    scales = {teacher["name"]: teacher["logit_scale"] for teacher in teachers}
    results = {name: retrieval(cosine, answers) for name, cosine in cosines.items()}
    if len(teachers) > 1:
        results[ENSEMBLE] = ensemble_retrieval([scales[name] * cosine for name, cosine in cosines.items()], answers)
    return {
        "pictures": len(with_text),
        "answers": len(answer_of),
        "retrieval": results,
        "agreement": [
            {
                "teachers": [first, second],
                **agreement(scales[first] * cosines[first], scales[second] * cosines[second]),
            }
            for first, second in combinations(cosines, 2)
        ],
        "logit_scale": {name: sweep(cosine, answers, scales[name]) for name, cosine in cosines.items()},
    }


def retrieval(scores: Tensor, answers: Tensor) -> dict[str, float]:
    """Return the share of pictures with their answer among the k best, and of answers with one of their pictures.

    scores: (R, A). answers: (R,), the answer of each picture.
    Half of the wrong candidates with the same score count as better, so a teacher that gives equal scores finds
    nothing.
    """
    wrong = answers[:, None] != torch.arange(scores.shape[1])  # (R, A)
    score_of_answer = scores.gather(1, answers[:, None])  # (R, 1)
    score_of_picture = scores.masked_fill(wrong, -torch.inf).amax(0)  # (A,), the best of an answer's pictures
    shares = {}
    for direction, right, dim in (("image_to_text", score_of_answer, 1), ("text_to_image", score_of_picture, 0)):
        better, equal = ((scores > right) & wrong).sum(dim), ((scores == right) & wrong).sum(dim)
        rank = better + equal / 2
        for k in RANKS:
            shares[f"{direction}@{k}"] = (rank < k).float().mean().item()
    return shares


def ensemble_retrieval(logits: Sequence[Tensor], answers: Tensor) -> dict[str, float]:
    """Return `retrieval` by the mean of the teachers' softmax, which is what a student learns. logits: (R, A) each."""
    to_text = retrieval(torch.stack([matrix.softmax(1) for matrix in logits]).mean(0), answers)
    to_image = retrieval(torch.stack([matrix.softmax(0) for matrix in logits]).mean(0), answers)
    return {name: (to_text if name.startswith("image") else to_image)[name] for name in to_text}


def agreement(first: Tensor, second: Tensor) -> dict[str, float]:
    """Return how often two teachers choose the same caption for a picture, and how much their probabilities differ.

    first, second: logits (R, A). The difference is the mean Jensen-Shannon divergence (nats) of the softmax over
    captions.
    """
    same = (first.argmax(1) == second.argmax(1)).float().mean().item()
    p, q = first.log_softmax(1), second.log_softmax(1)
    middle = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0))
    divergence = ((p.exp() * (p - middle)).sum(1) + (q.exp() * (q - middle)).sum(1)) / 2
    return {"same_top1": same, "js_divergence": divergence.mean().item()}


def sweep(cosines: Tensor, answers: Tensor, own_scale: float) -> dict[str, Any]:
    """Return, for several logit scales, the loss of the pictures' answers (nats) and the perplexity over all answers.

    cosines: (R, A). own_scale: the teacher's own logit scale, which is one of them. `best` is the scale with the least
    loss.
    """
    rows = []
    for scale in sorted({*SCALES, own_scale}):
        log_probabilities = (scale * cosines).log_softmax(1)
        entropy = -(log_probabilities.exp() * log_probabilities).sum(1)
        rows.append(
            {
                "logit_scale": scale,
                "nats": -log_probabilities.gather(1, answers[:, None]).mean().item(),
                "perplexity": entropy.exp().mean().item(),
            }
        )
    return {"own": own_scale, "best": min(rows, key=lambda row: row["nats"])["logit_scale"], "sweep": rows}


def table(report: Mapping[str, Any]) -> list[str]:
    """Return the report as lines of text."""
    lines = [f"{report['records']:,} records compared"]
    for name, measured in report["captions"].items():
        lines += [
            "",
            f"{name}: {measured['pictures']:,} pictures, {measured['answers']:,} captions; "
            "found among the first 1 and 5",
            f"  {'teacher':40}   text of a picture   picture of a text  own scale  best scale",
        ]
        for teacher, shares in measured["retrieval"].items():
            line = f"  {teacher[-40:]:40}" + "".join(f"{share:10.1%}" for share in shares.values())
            if scale := measured["logit_scale"].get(teacher):
                line += f"{scale['own']:11.4g}{scale['best']:12.4g}"
            lines.append(line)
        lines += [
            f"  {' and '.join(pair['teachers'])}: the same caption first for {pair['same_top1']:.1%} of the pictures, "
            f"Jensen-Shannon divergence {pair['js_divergence']:.3f} nats"
            for pair in measured["agreement"]
        ]
    return lines
