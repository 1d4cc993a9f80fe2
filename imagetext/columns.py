"""Names of columns: synthetic captions, and texts that are not true captions (negatives and tags)."""

import re

OTHERS = ("neg_text_", "tags_", "neg_tags_")
OF_EMBEDDINGS = ("emb", "embedding", "embeddings")  # names that end so are columns of embeddings
TAKEN = ("emb", "_captions")  # parts of names that the reference tools interpret in another way


def is_caption_column(name: str) -> bool:
    """Whether a field holds synthetic captions: `syn_text...`, but not the embeddings of such a column."""
    return name.startswith("syn_text") and not name.endswith(OF_EMBEDDINGS)


def is_other_column(name: str) -> bool:
    """Whether a field holds texts that are not true captions: `neg_text_...`, `tags_...`, `neg_tags_...`.

    Trainers must never use them as captions, so they are never stored with captions: not in `syn.json`, not under
    `syn_text`.
    """
    return name.startswith(OTHERS) and not name.endswith(OF_EMBEDDINGS)


def is_tags(name: str) -> bool:
    """Whether a column holds tags (true or false ones), which are judged and counted as tags, not as captions."""
    return re.match(r"(?:neg_)?tags(?:_|\Z)", name) is not None


def is_column(name: str) -> bool:
    """Whether a field's name is that of a column of texts: synthetic captions, negatives or tags."""
    return is_caption_column(name) or is_other_column(name)


def can_be_written(name: str) -> bool:
    """Whether a column of this name may be in a shard that we write: no reader may take it for something else."""
    return is_column(name) and not any(part in name for part in TAKEN)


def check_column(name: str) -> str:
    """Return the name of a column, if it is a valid one.

    A valid name is `syn_text_`, or `neg_text_`, `tags_` or `neg_tags_` for texts that are not true captions, followed
    by characters of `a-z 0-9 _`.

    Raises ValueError for other names, and for names that contain `emb` or `_captions`: the reference tools take them
    for embeddings and for captions of another kind.
    """
    if not re.fullmatch(r"(syn_text|neg_text|tags|neg_tags)_[a-z0-9_]+", name):
        raise ValueError(
            f"column: {name!r} is not syn_text_… (nor neg_text_…, tags_… or neg_tags_…, for texts that are no true "
            "captions) with letters a-z, digits and underscores"
        )
    for part in TAKEN:
        if part in name:
            raise ValueError(f"column: {name!r} contains {part!r}, which the reference tools take for something else")
    return name
