"""What one record looks like in each format that is written: webdataset, JSONL, Parquet. The letter of it stands in docs/architecture.md."""
