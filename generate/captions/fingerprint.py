"""All that decides the bytes of a set of captions, as `run.json` keeps it."""

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from generate.captions.config import GenerateConfig
from generate.captions.stages import Column
from generate.captions.tasks import Task
from generate.runs.manifest import RULES
from imagetext.readers.labels import read_class_names

ASIDE = ("format", "captions_only", "replace_columns", "drop_text_embeddings", "text_from_synthetic", "limit")


def fingerprint(columns: Sequence[Column], config: GenerateConfig) -> dict[str, Any]:
    """All that, with a shard's samples, decides the shard's bytes; not devices, ranks or workers.

    Its `columns` have captioner, weights, task, sampling, gate, dtype and batch size of each by its name, in the run's order; those
    that the answers in JSON of one captioner go to have the same.
    """
    versions = {name: ".".join(version(name).split(".")[:2]) for name in ("torch", "open_clip_torch", "capsmith")}
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
                **({"task": column.task.fingerprint(looks=column.looks)} if column.task != Task() else {}),
                **({"extra_body": asked.extra_body} if asked.extra_body else {}),
            }
            for column, asked in zip(columns, config.column_configs)
            for name in column.writes
        },
        **{name: getattr(config, name) for name in ASIDE},
        **_labels(config),
        "versions": versions,
    }


def _labels(config: GenerateConfig) -> dict[str, Any]:
    """Where the pictures' classes stand, and a hash of their names, where these are asked for."""
    if not config.label:
        return {}
    names = json.dumps(read_class_names(config.class_names) if config.class_names else None)
    return {"label": config.label, "class_names_sha256": hashlib.sha256(names.encode()).hexdigest()}
