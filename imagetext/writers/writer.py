"""The interface of all writers of shards."""

from typing import Protocol

from imagetext.sample import Record


class Writer(Protocol):
    """Writes the records of a shard into its file, each as it comes; `ShardWriter` gives the failed ones last.

    Of a record's columns it gives those that `record_columns` leaves.
    """

    def write(self, key: str, record: Record, text: str | None) -> None:
        """Adds a record under a key that no other of the shard has; text: its `txt`, in the format that has one.

        Raises: ValueError, naming the key, where the record breaks the contract of the format; OSError where the file cannot
        be written. The shard is then to be given up.
        """

    def close(self) -> None:
        """Writes what is left to make the file whole; the file itself stays open."""

    def commit(self) -> None:
        """Gives what was stored beside the file its place, once the file is whole."""

    def discard(self) -> None:
        """Leaves nothing of what has no place yet."""


class OneFile:
    """A shard that is one file."""

    def commit(self) -> None:
        pass

    def discard(self) -> None:
        pass
