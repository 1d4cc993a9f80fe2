"""The flags for reading tables, which are the same in all commands."""

import os
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, Field


class Columns(NamedTuple):
    """Which columns of tables hold pictures, captions and keys. None and (): columns with the usual names."""

    image: str | None = None
    captions: tuple[str, ...] = ()  # all columns that hold captions of a picture
    keys: tuple[str, ...] = ()  # names of the column of keys; a table has one of them
    group: bool = True  # whether rows of one picture are one record, in a table with one row for each caption

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that the user named."""
        return tuple(filter(None, (self.image, *self.captions, *self.keys)))


def _as_list(images: Any) -> Any:
    """A single folder becomes a list, and None an empty list."""
    if images is None:
        return []
    if isinstance(images, str | os.PathLike):
        images = [images]
    if not isinstance(images, list | tuple):
        return images
    return [os.fspath(image) if isinstance(image, os.PathLike) else image for image in images]


class TableFlags(BaseModel):
    """Which columns of tables hold pictures, captions and keys."""

    images: Annotated[list[str], BeforeValidator(_as_list)] = Field(
        default=[],
        description="folder (also s3://…) that holds the pictures which tables, caption sets and metadata name; their "
        "paths start from it; repeatable (default: the folder of the file)",
    )
    image_column: str | None = Field(
        default=None,
        description="column of tables that holds the picture or its path (default: a usual name, such as image)",
    )
    caption_column: list[str] = Field(
        default=[],
        description="column of tables, or of a folder's metadata, that holds captions; repeatable (default: a usual "
        "name, such as captions or text)",
    )
    key: list[str] = Field(
        default=[],
        description="column of tables that names each picture; repeatable, the first one that a table has is used "
        "(default: key, uid or id)",
    )
    group: bool = Field(
        default=True,
        description="if a table has a row for each caption, join the rows of the same picture into one record",
    )

    @property
    def table(self) -> Columns:
        """The flags in the form that the readers take."""
        return Columns(self.image_column, tuple(self.caption_column), tuple(self.key), group=self.group)
