"""Keeps captions that are like their picture: `python keep_alike.py SET COLUMN THRESHOLD OUTPUT`.

The column was drawn with `capsmith generate --similarity`. A picture of which no caption is left becomes a failed record with its
reason, so the new set has as many records as the old one.
"""

import sys
from dataclasses import replace

from imagetext.sample import Record
from imagetext.shards import ShardWriter
from imagetext.sources import read_samples


def kept(record: Record, column: str, threshold: float) -> Record:
    """The record with those captions of the column, and their scores, whose similarity is at least the threshold."""
    if record.error or column not in record.columns:
        return record
    scores = record.scores[column]
    places = [place for place, similarity in enumerate(scores["similarity"]) if similarity >= threshold]
    captions = tuple(record.columns[column][place] for place in places)
    if not captions:
        return replace(record, error=f"no caption of {column} has a similarity of {threshold}")
    of_these = {name: [values[place] for place in places] for name, values in scores.items()}
    return replace(record, columns={**record.columns, column: captions}, scores={**record.scores, column: of_these})


def main(pattern: str, column: str, threshold: str, output: str) -> None:
    for shard in read_samples(pattern):
        with ShardWriter(output, shard.name, columns=[column]) as writer:
            for record in shard:
                writer.write(kept(record, column, float(threshold)))


if __name__ == "__main__":
    main(*sys.argv[1:])
