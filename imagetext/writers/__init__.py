"""Writers of the three formats: webdataset, JSONL, Parquet. docs/architecture.md describes each to the letter."""
