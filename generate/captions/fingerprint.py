"""The fingerprint of a run of `capsmith generate`: all settings that decide the bytes of the set, for `run.json`."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from generate.captions.config import GenerateConfig
from generate.captions.settled_column import SettledColumn
from generate.captions.tasks import Task
from generate.runs.manifest import RULES, minor_versions
from imagetext.readers.labels import read_class_names

SETTINGS = ("format", "captions_only", "replace_columns", "drop_text_embeddings", "text_from_synthetic", "limit")


def fingerprint(columns: Sequence[SettledColumn], config: GenerateConfig) -> dict[str, Any]:
    """Return all settings that, with the samples of a shard, decide its bytes; devices, ranks and workers do not.

    `columns` has an entry for each column that is written, in the run's order: captioner, weights, task, sampling,
    gate, dtype, products and batch size. Columns that the JSON answers of one captioner go to have equal entries.
    """
    return {
        "rules": RULES,
        "columns": {
            name: {
                "captioner": column.captioner.name,
                "weights_sha256": column.captioner.weights_sha256,
                "sampling": column.sampling.model_dump(mode="json"),
                "gate": column.gate.model_dump(),
                "similarity": column.similarity,
                "dtype": column.dtype,
                "batch_size": column.batch_size,
                # by oneDNN if it is not there, as in runs of earlier versions
                **({"products": column.products} if column.products == "torch" else {}),
                **({"task": column.task.fingerprint(looks=column.looks)} if column.task != Task() else {}),
                **({"extra_body": column_config.extra_body} if column_config.extra_body else {}),
            }
            for column, column_config in zip(columns, config.column_configs)
            for name in column.writes
        },
        **{name: getattr(config, name) for name in SETTINGS},
        **_labels(config),
        "versions": minor_versions("torch", "open_clip_torch", "capsmith"),
    }


def _labels(config: GenerateConfig) -> dict[str, Any]:
    """Return where the classes of the pictures are read from, and a hash of their names; {} without --label."""
    if not config.label:
        return {}
    names = json.dumps(read_class_names(config.class_names) if config.class_names else None)
    return {"label": config.label, "class_names_sha256": hashlib.sha256(names.encode()).hexdigest()}
