"""Keeps captions that are similar to their picture: `python keep_alike.py SET COLUMN THRESHOLD OUTPUT`.

The column must have been written with `capsmith generate --similarity`. A picture without any caption left becomes a
failed record with the reason, so the new set has as many records as the old one.
"""

import sys
from dataclasses import replace

from imagetext.sample import Record
from imagetext.shards import ShardWriter
from imagetext.sources import read_samples


def with_similar_captions(record: Record, column: str, threshold: float) -> Record:
    """Return the record with those captions of the column whose similarity reaches the threshold, and their scores."""
    if record.error:
        return record
    scores = record.scores.get(column, {})
    indices = [index for index, similarity in enumerate(scores.get("similarity", ())) if similarity >= threshold]
    captions = tuple(record.columns[column][index] for index in indices)
    if not captions:
        return replace(record, error=f"no caption of {column} has a similarity of {threshold}")
    kept_scores = {name: [values[index] for index in indices] for name, values in scores.items()}
    return replace(record, columns={**record.columns, column: captions}, scores={**record.scores, column: kept_scores})


def main(pattern: str, column: str, threshold: str, output: str) -> None:
    records = kept = 0
    for shard in read_samples(pattern):
        with ShardWriter(output, shard.name, columns=[column]) as writer:
            for record in shard:
                result = with_similar_captions(record, column, float(threshold))
                writer.write(result)
                records += 1
                kept += not result.error
    print(f"{kept:,} of {records:,} pictures have captions of {column} left")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
