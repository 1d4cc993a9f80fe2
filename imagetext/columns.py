"""Names of columns: of synthetic captions, and of texts that are no true captions."""

import re

OTHERS = ("neg_text_", "tags_", "neg_tags_")
OF_EMBEDDINGS = ("emb", "embedding", "embeddings")  # ends of names
TAKEN = ("emb", "_captions")  # parts of names that the reference tools take for something else


def is_caption_column(name: str) -> bool:
    """Whether a field holds synthetic captions: `syn_text...`, which is not the embeddings of such a column."""
    return name.startswith("syn_text") and not name.endswith(OF_EMBEDDINGS)


def is_other_column(name: str) -> bool:
    """Whether a field holds texts of a picture that are no true captions: `neg_text_...`, `tags_...`, `neg_tags_...`.

    Trainers must never draw them as captions, so they never stand among these: not in `syn.json`, not under `syn_text`.
    """
    return name.startswith(OTHERS) and not name.endswith(OF_EMBEDDINGS)


def is_tags(name: str) -> bool:
    """Whether a column has tags, true or not, which are judged and counted as such, and not as captions."""
    return re.match(r"(?:neg_)?tags(?:_|\Z)", name) is not None


def is_column(name: str) -> bool:
    """Whether a field is a column of texts by its name, of either kind."""
    return is_caption_column(name) or is_other_column(name)


def check_column(name: str) -> str:
    """The name of a column, if it is one: `syn_text_` (or `neg_text_`, `tags_`, `neg_tags_`: no true captions), then `a-z 0-9 _`.

    Raises ValueError otherwise, and for names with `emb` or `_captions` in them: the reference tools take those for
    embeddings and for captions of another kind.
    """
    if not re.fullmatch(r"(syn_text|neg_text|tags|neg_tags)_[a-z0-9_]+", name):
        raise ValueError(
            f"column: {name!r} is not syn_text_… (nor neg_text_…, tags_… or neg_tags_…, for texts that are no true captions) "
            "with letters a-z, digits and underscores"
        )
    for part in TAKEN:
        if part in name:
            raise ValueError(f"column: {name!r} contains {part!r}, which the reference tools take for something else")
    return name
