"""Image-text samples, in and out: one record type, one way to decode, readers and writers of the usual formats."""

from imagetext.sample import Record, Sample, decode_image, image_size
from imagetext.shards import ShardWriter, check_column, dataset_features, read_marker
from imagetext.sources import Shard, read_records, read_samples

__all__ = [
    "Record", "Sample", "Shard", "ShardWriter", "check_column", "dataset_features", "decode_image", "image_size",
    "read_marker", "read_records", "read_samples",
]
