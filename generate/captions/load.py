"""From configurations to settled columns: loads each captioner once, reads tasks, settles batch sizes and dtypes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from captioners.base import Captioner
from captioners.lean_open_clip import import_open_clip
from captioners.load import load_captioner
from captioners.machine import free_memory
from captioners.ranks import processes_here
from captioners.rules.negatives import NEGATIVES
from captioners.server.config import ServerConfig
from generate.captions.column import ColumnConfig
from generate.captions.config import GenerateConfig
from generate.captions.settled_column import SettledColumn
from generate.captions.tasks import Task, problems_of_order
from imagetext.shards import check_column

SMALL = 50_000_000  # parameters of a model of which more pictures are in flight on a CPU


def load_columns(config: GenerateConfig, settled: Sequence[Mapping[str, Any]], device: str) -> list[SettledColumn]:
    """Load the captioners and return the columns; columns with the same model share captioner and batch size.

    settled: what an earlier start of the run has settled, one entry for each column that is written (a column whose
    answers are JSON has several). It stays as it is.
    Raises: ValueError where a model cannot be loaded, a task or sampling does not fit it, or two columns have one
    name.
    """
    configs = config.column_configs
    earlier_settings = _settings_by_config(configs, settled)
    columns: list[SettledColumn] = []
    captioners: dict[tuple, Captioner] = {}
    tasks: dict[str, Task] = {}
    for column_config, earlier in zip(configs, earlier_settings):
        dtype = column_config.dtype or earlier.get("dtype") or ("bf16" if device.startswith("cuda") else "fp32")
        # A run of a version without this setting used oneDNN.
        products = column_config.products or (earlier.get("products", "onednn") if earlier else None)
        server = column_config.server if column_config.of_server else ServerConfig()
        model = (column_config.captioner, column_config.pretrained, column_config.base, dtype, products, str(server))
        if model not in captioners:
            pictures = any(other.can_look for other in configs if other.captioner == column_config.captioner)
            captioners[model] = _load(
                column_config, server, device=device, dtype=dtype, products=products, pictures=pictures
            )
        captioner = captioners[model]
        task = column_config.task.model_dump_json()
        if task not in tasks:
            tasks[task] = column_config.task.settled()
        column = SettledColumn(
            _column_name(column_config, captioner),
            captioner,
            column_config.sampling,
            gate=column_config.gate,
            similarity=column_config.similarity,
            dtype=dtype,
            products=getattr(captioner, "products", None),
            batch_size=captioner.batch_size,
            task=tasks[task],
        )
        column.check()
        columns.append(column)
    if problems := problems_of_order([(column.writes, column.task.columns_read) for column in columns]):
        raise ValueError("; ".join(problems))
    return _with_batch_sizes(columns, configs, earlier_settings, device)


def _load(
    config: ColumnConfig,
    server: ServerConfig,
    *,
    device: str,
    dtype: str,
    products: Literal["torch", "onednn"] | None,
    pictures: bool,
) -> Captioner:
    if not config.of_server and config.captioner != NEGATIVES:  # these need no open_clip
        import_open_clip()
    return load_captioner(
        config.captioner,
        config.pretrained,
        base=config.base,
        device=device,
        dtype=dtype,
        products=products,
        server=server,
        pictures=pictures,
    )


def _with_batch_sizes(
    columns: Sequence[SettledColumn],
    configs: Sequence[ColumnConfig],
    earlier_settings: Sequence[Mapping[str, Any]],
    device: str,
) -> list[SettledColumn]:
    """Return the columns with batch sizes; columns with the same captioner have the smallest of theirs."""
    smallest: dict[int, int] = {}  # batch size by the id of the captioner
    for column_config, earlier, column in zip(configs, earlier_settings, columns):
        size = column_config.batch_size or earlier.get("batch_size")
        if not size and column_config.of_server:  # a server makes its own batches
            size = column.captioner.batch_size
        elif not size:
            bytes_per_picture = len(columns) * column.captioner.bytes_per_picture(column.sampling)
            size = fitting_batch_size(bytes_per_picture, device, small=is_small(column.captioner))
        captioner_id = id(column.captioner)
        smallest[captioner_id] = min(size, smallest.get(captioner_id, size))
    return [replace(column, batch_size=smallest[id(column.captioner)]) for column in columns]


def _column_name(config: ColumnConfig, captioner: Captioner) -> str:
    if config.named_columns:
        return config.named_columns[0]
    prefix = "neg_text_" if config.model == NEGATIVES else "syn_text_"
    return check_column(f"{prefix}{captioner.name}")


def _settings_by_config(
    configs: Sequence[ColumnConfig], settled: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Return what is settled for each configuration, from the first column that it writes.

    Where the number of columns differs, these are other columns, and nothing is settled.
    """
    counts = [len(column.fields) or 1 for column in configs]
    if len(settled) != sum(counts):
        return [{} for _ in configs]
    return [settled[sum(counts[:number])] for number in range(len(configs))]


def is_small(captioner: Captioner) -> bool:
    """Return whether the model is so small that a step spends more time on calling operations than on computing."""
    model = getattr(captioner, "model", None)  # a server's model is not here
    return model is not None and sum(parameter.numel() for parameter in model.parameters()) < SMALL


def fitting_batch_size(bytes_per_picture: int, device: str, *, small: bool = False) -> int:
    """Return how many pictures fit into half of the free memory, but not more than make a step faster per picture.

    The processes of a run on this machine share its main memory.
    small: whether the model `is_small`; on a CPU its step then takes about as long for more pictures.
    """
    if device.startswith("cuda"):
        free, most = torch.cuda.mem_get_info(device)[0], 256
    else:
        free, most = free_memory() // processes_here(), 64 if small else 32
    return max(1, min(most, free // (2 * bytes_per_picture)))
