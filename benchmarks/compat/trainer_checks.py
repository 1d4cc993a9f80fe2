"""Check that the official trainer received exactly what a reinforced set of ours holds.

`trainer.py` runs the trainer. `trainer_peer.py` records what reaches its model and its loss: an array for each name,
with one row for each step.

S: side of a picture in pixels, D: dimensions of all teachers together
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.compat.sets import MEAN, SIDE, STD, Set
from generate.reinforce.teachers import load_teachers
from imagetext.reinforced.embeddings import unpack
from imagetext.reinforced.views import decode_stored, normalise, read_views, replay

STEPS, BATCH = 20, 8  # steps of a run, pictures in a step


class Problem(Exception):
    """The trainer received something that differs from the set, or it ended with an error."""


class ReceivedPicture(NamedTuple):
    """One picture of a batch, with the texts and embeddings that came with it."""

    pixels: np.ndarray  # (3, S, S)
    text: int  # number of the original text, or -1 for a text that is not in the set
    syn_text: int  # number of the synthetic caption, or -1
    image_emb: np.ndarray  # (D,)
    text_emb: np.ndarray  # (D,)
    syn_text_emb: np.ndarray  # (D,)


class Summary(NamedTuple):
    """What a run received of a set: how many pictures, records and views, and how many captions of each column.

    `difference` is the largest difference between the embeddings that the trainer received and ours.
    """

    pictures: int
    records: int
    views: int
    columns: Counter
    difference: float


def received_pictures(trace: Mapping[str, np.ndarray]) -> list[ReceivedPicture]:
    """All pictures of all steps. The model gets the original texts of a batch first, then the synthetic captions.

    Raises: Problem, if the number of steps or pictures is wrong, or a loss is not finite.
    """
    if len(trace["images"]) != STEPS or trace["images"].shape[1] != BATCH:
        raise Problem(f"{len(trace['images'])} steps of {trace['images'].shape[1]} pictures, not {STEPS} of {BATCH}")
    losses = trace["distill_loss"]
    if not np.isfinite(losses).all() or len(losses) != STEPS:
        raise Problem(f"losses {losses}")
    fields = [
        trace["images"],
        trace["texts"][:, :BATCH],
        trace["texts"][:, BATCH:],
        trace["dist_image_features"],
        trace["dist_text_features"],
        trace["dist_syn_text_features"],
    ]
    return [ReceivedPicture(*values) for step in zip(*fields) for values in zip(*step)]


def check_stored(records: Set, trace: Mapping[str, np.ndarray], texts: Sequence[str]) -> Summary:
    """Check a run with stored embeddings.

    Each picture must be a view of one record, with its text, one of its captions, and the stored embeddings of these.
    Raises: Problem
    """
    stored = {key: unpack(records.records[key]) for key in records.pairs}
    view_by_embedding = {
        row.numpy().tobytes(): (key, view)
        for key, rows in stored.items()
        for view, row in enumerate(rows["image_emb"])
    }
    views, columns = set(), Counter()
    pictures = received_pictures(trace)
    for picture in pictures:
        key_and_view = view_by_embedding.get(picture.image_emb.tobytes())
        if key_and_view is None:
            raise Problem("an image embedding belongs to no view of a good record")
        key, view = key_and_view
        files, embeddings = records.records[key], stored[key]
        pixels = replay(read_views(files["paug.json"])[view], decode_stored(files["jpg"]), SIDE)
        if not np.array_equal(picture.pixels, normalise(pixels, MEAN, STD).numpy()):
            raise Problem(f"{key}: the pixels of view {view} differ")
        same_text = picture.text >= 0 and same_tokens(texts[picture.text], records.pairs[key])
        if not same_text or not np.array_equal(picture.text_emb, embeddings["text_emb"][0]):
            raise Problem(f"{key}: the text or its embedding is not that of the record")
        columns[column_of(picture, key, json.loads(files["syn.json"]), embeddings=embeddings, texts=texts)] += 1
        views.add(key_and_view)
    keys = {key for key, _ in views}
    return Summary(len(pictures), len(keys), len(views), columns=columns, difference=0.0)


def same_tokens(text: str, other: str) -> bool:
    """Whether CLIP's tokenizer gives both texts the same tokens; it ignores the case of letters."""
    return text.lower() == other.lower()


def column_of(
    picture: ReceivedPicture,
    key: str,
    columns: Mapping[str, Sequence[str]],
    *,
    embeddings: Mapping[str, torch.Tensor],
    texts: Sequence[str],
) -> str:
    """The column with the picture's synthetic caption, whose stored embedding must be the one that was received.

    Raises: Problem, if the record `key` has no such column
    """
    for name, captions in columns.items():
        for caption, row in zip(captions, embeddings[f"{name}_emb"], strict=True):
            if (
                picture.syn_text >= 0
                and same_tokens(caption, texts[picture.syn_text])
                and np.array_equal(picture.syn_text_emb, row.numpy())
            ):
                return name
    raise Problem(f"{key}: the synthetic caption or its embedding is not that of the record")


def check_online(
    records: Set, trace: Mapping[str, np.ndarray], texts: Sequence[str], *, teachers: Sequence[str]
) -> Summary:
    """Check a run with online teachers.

    Each picture must have the text and one of the captions of one record, and our own run of the teachers must give
    the same embeddings for these.
    Raises: Problem
    """
    pictures = received_pictures(trace)
    loaded = load_teachers(teachers, "cpu", "fp32")
    no_views = torch.zeros((0, 3, SIDE, SIDE), dtype=torch.uint8)
    our_texts = torch.cat([teacher.embed(no_views, texts, 32)[1] for teacher in loaded], dim=1).numpy()
    images = torch.from_numpy(np.stack([picture.pixels for picture in pictures]))
    with torch.inference_mode():
        our_images = torch.cat(
            [teacher.model.encode_image(images, normalize=True) for teacher in loaded], dim=1
        ).numpy()
    keys_by_text: dict[str, list[str]] = {}
    for key, text in records.pairs.items():
        keys_by_text.setdefault(text.lower(), []).append(key)
    keys, columns, difference = set(), Counter(), 0.0
    for picture, our_image in zip(pictures, our_images):
        if min(picture.text, picture.syn_text) < 0:
            raise Problem("a text is not in the set")
        text, caption = texts[picture.text], texts[picture.syn_text]
        matches = [
            (key, name)
            for key in keys_by_text.get(text.lower(), ())
            for name, captions in json.loads(records.records[key]["syn.json"]).items()
            if any(same_tokens(caption, candidate) for candidate in captions)
        ]
        if not matches:
            raise Problem(f"no record with the text {text!r} has the caption {caption!r}")
        for theirs, ours in (
            (picture.text_emb, our_texts[picture.text]),
            (picture.syn_text_emb, our_texts[picture.syn_text]),
            (picture.image_emb, our_image),
        ):
            difference = max(difference, float(np.abs(theirs - ours).max()))
        key, name = matches[0]
        keys.add(key)
        columns[name] += 1
    if difference > 1e-5:
        raise Problem(f"the teachers' embeddings differ by {difference:.1e}")
    return Summary(len(pictures), len(keys), views=0, columns=columns, difference=difference)
