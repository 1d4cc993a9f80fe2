"""The flags that say how tables are read, the same in every command."""

from pydantic import BaseModel, Field

from imagetext.table_columns import Columns


class TableFlags(BaseModel):
    """Where tables have their pictures, captions and keys."""

    image_column: str | None = Field(None, description="column of tables that holds the picture or its path; a usual name unless given")
    caption_column: list[str] = Field([], description="column of tables that holds captions, or several; a usual name unless given")
    key: list[str] = Field([], description="column of tables that names each picture; of several the one that a table has; key, uid or "
                           "id unless given")
    group: bool = Field(True, description="rows of a table that repeat a picture, each with a caption, are one picture")

    @property
    def table(self) -> Columns:
        """The same as the readers take it."""
        return Columns(self.image_column, tuple(self.caption_column), tuple(self.key), self.group)
