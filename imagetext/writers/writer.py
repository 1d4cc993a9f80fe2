"""The protocol of all writers of shards."""

from typing import Protocol

from imagetext.sample import Record


class Writer(Protocol):
    """Writes the records of a shard into its file, in the order in which they come.

    `ShardWriter` passes failed records last, and passes only the columns that `record_columns` returns.
    """

    def write(self, key: str, record: Record, text: str | None) -> None:
        """Add a record under a key that no other record of the shard has.

        text: its `txt`, for the format that has one.

        Raises ValueError, which names the key, if the record breaks the contract of the format, and OSError if the
        file cannot be written. Then the shard must be discarded.
        """

    def close(self) -> None:
        """Write the end of the file; the file itself stays open."""

    def commit(self) -> None:
        """Move files that are stored beside the shard to their final place, once the shard is complete."""

    def discard(self) -> None:
        """Remove everything that has no final place yet."""


class OneFile:
    """A shard that is a single file: there is nothing beside it to commit or discard."""

    def commit(self) -> None:
        pass

    def discard(self) -> None:
        pass
