"""From configurations to columns: captioners loaded once each, tasks read, batch sizes and dtypes settled."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import psutil
import torch

from captioners.base import Captioner
from captioners.load import load_captioner
from captioners.rules.negatives import NEGATIVES
from captioners.server.config import ServerConfig
from generate.captions.column import Column
from generate.captions.config import ColumnConfig, GenerateConfig
from generate.captions.tasks import Task, problems_of_order
from imagetext.shards import check_column


def load_columns(config: GenerateConfig, settled: Sequence[Mapping[str, Any]], device: str) -> list[Column]:
    """The columns, those of one model with one captioner and batch size; what the run has settled stays as it is.

    settled: an entry for each column that is written, several of a column whose answers are JSON.
    Raises: ValueError where a model cannot be loaded, a task or sampling does not fit it, or two columns have one name.
    """
    configs = config.column_configs
    before = _by_column(configs, settled)
    columns: list[Column] = []
    loaded: dict[tuple, Captioner] = {}
    tasks: dict[str, Task] = {}
    for asked, known in zip(configs, before):
        dtype = asked.dtype or known.get("dtype") or ("bf16" if device.startswith("cuda") else "fp32")
        server = asked.server if asked.of_server else ServerConfig()
        model = (asked.captioner, asked.pretrained, asked.base, dtype, str(server))
        if model not in loaded:
            loaded[model] = load_captioner(
                asked.captioner, asked.pretrained, base=asked.base, device=device, dtype=dtype, server=server
            )
        captioner = loaded[model]
        kind = "neg_text_" if asked.model == NEGATIVES else "syn_text_"
        task = asked.task.model_dump_json()
        if task not in tasks:
            tasks[task] = asked.task.settled()
        column = Column(
            asked.named_columns[0] if asked.named_columns else check_column(f"{kind}{captioner.name}"),
            captioner,
            asked.sampling,
            asked.gate,
            similarity=asked.similarity,
            dtype=dtype,
            batch_size=captioner.batch_size,
            task=tasks[task],
        )
        column.check()
        columns.append(column)
    if problems := problems_of_order([(column.writes, column.task.columns_read) for column in columns]):
        raise ValueError("; ".join(problems))
    sizes = [
        asked.batch_size
        or known.get("batch_size")
        or (
            column.captioner.batch_size
            if asked.of_server  # a server makes its own batches
            else fitting_batch_size(len(columns) * column.captioner.bytes_per_picture(column.sampling), device)
        )
        for asked, known, column in zip(configs, before, columns)
    ]
    smallest: dict[int, int] = {}  # of each captioner's columns
    for column, size in zip(columns, sizes):
        smallest[id(column.captioner)] = min(size, smallest.get(id(column.captioner), size))
    return [replace(column, batch_size=smallest[id(column.captioner)]) for column in columns]


def _by_column(configs: Sequence[ColumnConfig], settled: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What the run has settled of each column, by the first of those that it writes; nothing where these are other columns."""
    counts = [len(column.fields) or 1 for column in configs]
    if len(settled) != sum(counts):
        return [{} for _ in configs]
    return [settled[sum(counts[:number])] for number in range(len(configs))]


def fitting_batch_size(bytes_per_picture: int, device: str) -> int:
    """How many pictures in flight half of the free memory holds, but not more than make a step faster per picture."""
    if device.startswith("cuda"):
        free, most = torch.cuda.mem_get_info(device)[0], 256
    else:
        free, most = psutil.virtual_memory().available, 16
    return max(1, min(most, free // (2 * bytes_per_picture)))
