"""Writers of the three formats: webdataset, JSONL, Parquet. docs/architecture.md specifies each."""
