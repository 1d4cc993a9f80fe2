"""The flags that say how tables are read, the same in every command."""

import os
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, Field


class Columns(NamedTuple):
    """Where pictures, captions and keys stand in tables. None and (): by the usual names."""

    image: str | None = None
    captions: tuple[str, ...] = ()  # all of a picture's
    keys: tuple[str, ...] = ()  # of which a table has one
    group: bool = True  # rows of one picture are one record, where a table has one row a caption

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that are named."""
        return tuple(filter(None, (self.image, *self.captions, *self.keys)))


def _listed(images: Any) -> Any:
    """One folder is a list of one, and none an empty one."""
    images = [] if images is None else [images] if isinstance(images, str | os.PathLike) else images
    return (
        [os.fspath(image) if isinstance(image, os.PathLike) else image for image in images]
        if isinstance(images, list | tuple)
        else images
    )


class TableFlags(BaseModel):
    """Where tables have their pictures, captions and keys."""

    images: Annotated[list[str], BeforeValidator(_listed)] = Field(
        default=[],
        description="folder, or s3://…, in which the pictures of tables, caption sets and metadata lie and from which their paths "
        "start; repeatable; the file's own folder unless given",
    )
    image_column: str | None = Field(
        default=None, description="column of tables that holds the picture or its path; a usual name unless given"
    )
    caption_column: list[str] = Field(
        default=[], description="column of tables that holds captions, or several; a usual name unless given"
    )
    key: list[str] = Field(
        default=[],
        description="column of tables that names each picture; of several the one that a table has; key, uid or "
        "id unless given",
    )
    group: bool = Field(
        default=True, description="rows of a table that repeat a picture, each with a caption, are one picture"
    )

    @property
    def table(self) -> Columns:
        """The flags as the readers take them."""
        return Columns(self.image_column, tuple(self.caption_column), tuple(self.key), self.group)
