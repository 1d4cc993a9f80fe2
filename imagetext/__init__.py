"""Image-text samples, in and out: one record type, one way to decode, readers and writers of the usual formats."""

from imagetext.columns import ColumnClash
from imagetext.sample import Record, Sample, decode_image, image_size
from imagetext.shards import ShardWriter, check_column, dataset_features, read_marker, read_markers
from imagetext.sources import Shard, read_records, read_samples
from imagetext.stores import StoreError

__all__ = [
    "ColumnClash", "Record", "Sample", "Shard", "ShardWriter", "StoreError", "check_column", "dataset_features", "decode_image",
    "image_size", "read_marker", "read_markers", "read_records", "read_samples",
]
