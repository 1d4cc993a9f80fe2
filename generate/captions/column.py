"""The configuration of one caption column. This module imports no torch, so that --help is quick."""

import logging
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from captioners.base import SamplingConfig
from captioners.rules.negatives import NEGATIVES
from captioners.server.config import ServerConfig
from generate.captions.gate import Gate
from generate.captions.tasks import TaskConfig, schema_of
from generate.captions.unused import unused_settings
from imagetext.columns import check_column

logger = logging.getLogger(__name__)


class ColumnConfig(SamplingConfig, TaskConfig, Gate, ServerConfig):
    """The configuration of one caption column: captioner, task, sampling, gate, and the settings of a server.

    Where the answer is JSON, one configuration writes several columns, those that `fields` names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(
        None,
        description="captioner: coca_tiny, an open_clip architecture, a folder, a file, or org/name on the Hugging "
        "Face Hub (captioner, vision-language model or language model); rules:negatives; or a model of a server, "
        "openai:http://host:port#model; required, unless the --config file lists columns",
    )
    prompt: str | None = Field(
        None,
        exclude=True,
        description="old name of --prefix, or of --instruction for a server's model; version 0.3 will not accept it",
    )
    pretrained: str | None = Field(None, description="weights for an open_clip architecture: a tag or a file")
    base: str | None = Field(
        None, description="local folder of the base model that the captioner's adapters were trained on"
    )
    column: Annotated[str, AfterValidator(check_column)] | None = Field(
        None, description="caption column to write (default: syn_text_ followed by the captioner's name)"
    )
    similarity: bool = Field(
        False,
        description="score each caption by its CoCa similarity with the picture, which costs one more text pass",
    )
    batch_size: int | None = Field(
        None,
        gt=0,
        description="pictures that the captioner processes at a time (default: as many as fit, chosen once for a run)",
    )
    dtype: Literal["fp32", "bf16", "fp16"] | None = Field(
        None, description="number type that the captioner computes in (default: bf16 on a GPU, else fp32)"
    )
    products: Literal["torch", "onednn"] | None = Field(
        None,
        description="library of a CoCa's float32 matrix products on a CPU: torch (torch's own, usually MKL) or onednn "
        "(default: the faster one, measured once on a machine and chosen once for a run)",
    )

    @model_validator(mode="before")
    @classmethod
    def _rename_prompt(cls, values: Any) -> Any:
        """Put `prompt` under its new name; beside a list of columns, each of them does that for itself."""
        if not isinstance(values, dict) or values.get("columns") or "prompt" not in values:
            return values
        values = dict(values)
        if prompt := values.pop("prompt"):
            name = "instruction" if str(values.get("model")).startswith("openai:") else "prefix"
            if values.get(name):
                raise ValueError(f"prompt: is the old name of {name}, and both are given; remove prompt")
            logger.warning("--prompt is called --%s now; version 0.3 will not accept the old name", name)
            values[name] = prompt
        return values

    @model_validator(mode="after")
    def _column_fits_together(self) -> Self:
        problems = []
        if self.fields and self.answer != "json":
            problems.append(f"fields: are for --answer json, and answer is {self.answer}")
        if self.answer == "json" and not self.fields:
            problems.append(
                "answer: json needs --fields FIELD=COLUMN, which name the column of each field of the answer"
            )
        if self.fields and self.column:
            problems.append(f"column: {self.column}: an answer in JSON goes to the columns that fields names")
        if self.model and self.model.startswith("rules:") and self.model != NEGATIVES:
            problems.append(f"model: {self.model}: there are no such rules; there is {NEGATIVES}")
        if self.model == NEGATIVES and self.column and not self.column.startswith("neg_text_"):
            problems.append(f"column: {self.column}: {NEGATIVES} writes negatives; name the column neg_text_…")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def of_server(self) -> bool:
        """Whether the captioner is a model of a server."""
        return (self.model or "").startswith("openai:")

    @property
    def captioner(self) -> str:
        """The captioner's name. Raises: ValueError where none is given, which a validated configuration rules out."""
        if not self.model:
            raise ValueError("--model: required")
        return self.model

    @property
    def named_columns(self) -> tuple[str, ...]:
        """The columns to write that the configuration names; () where the captioner will name the column."""
        if self.fields:
            return tuple(self.fields.values())
        return (self.column,) if self.column else ()

    @property
    def sampling(self) -> SamplingConfig:
        """How captions are drawn."""
        values = self.model_dump(include=set(SamplingConfig.model_fields))
        if self.fields and not self.json_schema:
            values["json_schema"] = schema_of(self.fields)
        return SamplingConfig(**values)

    @property
    def task(self) -> TaskConfig:
        """What the captioner is asked."""
        values = self.model_dump(include=set(TaskConfig.model_fields))
        if self.model == NEGATIVES and not self.instruction:
            values["instruction"] = "{{ text }}"
        return TaskConfig(**values)

    @property
    def unused_settings(self) -> dict[str, str]:
        """The settings that are given and have no effect on the column, each with the reason."""
        return unused_settings(self.model, self.sampling, self.task, self.gate, self.named_columns)

    @property
    def can_look(self) -> bool:
        """Whether the captioner may be shown the picture, as far as its name tells."""
        return not self.text_only and self.model != NEGATIVES

    @property
    def gate(self) -> Gate:
        """Which generated captions are accepted, and what happens to those that are not."""
        return Gate(**self.model_dump(include=set(Gate.model_fields)))

    @property
    def server(self) -> ServerConfig:
        """How requests are sent, where the captioner is a model of a server."""
        return ServerConfig(**self.model_dump(include=set(ServerConfig.model_fields)))
