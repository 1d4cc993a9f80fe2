"""The configuration of `capsmith generate`; imports no torch, so that --help is quick."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import CliSuppress

from captioners.base import SamplingConfig
from captioners.rules.negatives import NEGATIVES
from captioners.server.config import ServerConfig
from generate.captions.gate import Gate
from generate.captions.tasks import TaskConfig, problems_of_order, schema_of
from generate.runs.config import RunConfig
from imagetext.readers.table_flags import TableFlags
from imagetext.shards import check_column

logger = logging.getLogger(__name__)

RECIPES = {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}


def _check_recipe(name: str) -> str:
    if name not in RECIPES:
        raise ValueError(f"no such recipe; there is {', '.join(RECIPES)}")
    return name


class ColumnConfig(SamplingConfig, TaskConfig, Gate, ServerConfig):
    """One column of captions: by which captioner, what it is asked, how drawn, what becomes of degenerate ones, how a server is asked.

    An answer in JSON has several columns, those of `fields`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(
        None,
        description="the captioner: coca_tiny, an open_clip architecture, a folder or file, org/name, also of a vision-language "
        "or a language model; rules:negatives; or a server's: openai:http://host:port#model",
    )
    prompt: str | None = Field(
        None,
        exclude=True,
        description="the old name of --prefix, and for a server's model of --instruction; version 0.3 will not take it",
    )
    pretrained: str | None = Field(None, description="weights of an open_clip architecture: a tag or a file")
    base: str | None = Field(
        None, description="the model under a captioner's adapters, where it lies on this machine: its folder"
    )
    column: Annotated[str, AfterValidator(check_column)] | None = Field(
        None, description="the captions' column; syn_text_ and the captioner's name unless given"
    )
    similarity: bool = Field(
        False, description="score each caption by its CoCa similarity with the picture: one more text pass"
    )
    batch_size: int | None = Field(
        None, gt=0, description="pictures in flight at a time; chosen once for a run unless given"
    )
    dtype: Literal["fp32", "bf16", "fp16"] | None = Field(
        None, description="of the captioner; chosen once for a run unless given: bf16 on a GPU, else fp32"
    )

    @model_validator(mode="before")
    @classmethod
    def _take_prompt(cls, given: Any) -> Any:
        """`prompt` as what it meant; beside a list of columns it is for each of these to take."""
        if not isinstance(given, dict) or given.get("columns") or "prompt" not in given:
            return given
        given = dict(given)
        if prompt := given.pop("prompt"):
            name = "instruction" if str(given.get("model")).startswith("openai:") else "prefix"
            if given.get(name):
                raise ValueError(f"prompt: is called {name} now, and both are given")
            logger.warning("--prompt is called --%s now; version 0.3 will not take the old name", name)
            given[name] = prompt
        return given

    @model_validator(mode="after")
    def _column_fits_together(self) -> Self:
        problems = []
        if self.fields and self.answer != "json":
            problems.append(f"fields: are for --answer json, and answer is {self.answer}")
        if self.answer == "json" and not self.fields:
            problems.append(
                "answer: json needs --fields FIELD=COLUMN, which say where its fields go, and none are given"
            )
        if self.fields and self.column:
            problems.append(f"column: {self.column}: an answer in JSON goes to the columns of its fields")
        if self.model and self.model.startswith("rules:") and self.model != NEGATIVES:
            problems.append(f"model: {self.model}: there are no such rules; there is {NEGATIVES}")
        if self.model == NEGATIVES and self.column and not self.column.startswith("neg_text_"):
            problems.append(f"column: {self.column}: negatives are no captions and no tags; name it neg_text_…")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def of_server(self) -> bool:
        """Whether the captioner is a server's model."""
        return (self.model or "").startswith("openai:")

    @property
    def captioner(self) -> str:
        """The captioner's name; ValueError without one, which no whole configuration is."""
        if not self.model:
            raise ValueError("--model: required")
        return self.model

    @property
    def named_columns(self) -> tuple[str, ...]:
        """The columns that are written, as far as they are named; all others have the captioner's name."""
        return tuple(self.fields.values()) or ((self.column,) if self.column else ())

    @property
    def sampling(self) -> SamplingConfig:
        """How captions are drawn."""
        asked = self.model_dump(include=set(SamplingConfig.model_fields))
        if self.fields and not self.json_schema:
            asked["json_schema"] = schema_of(self.fields)
        return SamplingConfig(**asked)

    @property
    def task(self) -> TaskConfig:
        """What the captioner is asked."""
        asked = self.model_dump(include=set(TaskConfig.model_fields))
        if self.model == NEGATIVES and not self.instruction:
            asked["instruction"] = "{{ text }}"
        return TaskConfig(**asked)

    @property
    def can_look(self) -> bool:
        """Whether the captioner may be shown the picture, as far as its name tells."""
        return not self.text_only and self.model != NEGATIVES

    @property
    def gate(self) -> Gate:
        """What becomes of a caption once it is drawn."""
        return Gate(**self.model_dump(include=set(Gate.model_fields)))

    @property
    def server(self) -> ServerConfig:
        """How a server is asked, where the captioner is one's."""
        return ServerConfig(**self.model_dump(include=set(ServerConfig.model_fields)))


class GenerateConfig(RunConfig, ColumnConfig, TableFlags):
    """Caption pictures, several captions each, into records. The same command again resumes.

    Several columns in one run: `columns` in the --config file, a list; each entry has the fields in which its column
    differs from those beside the list (model, column, temperature, …).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Annotated[str, AfterValidator(_check_recipe)] | None = Field(
        None, description=f"settings that all flags override: {', '.join(RECIPES)}; each says what is the paper's"
    )
    text_model: str | None = Field(
        None,
        description="in a recipe of several columns, the captioner of those asked by words alone; else --model is",
    )
    input: list[str] = Field(
        min_length=1, description="pictures: shards, folder, CSV, JSONL, Parquet, caption set, scenes:…"
    )
    columns: CliSuppress[list[ColumnConfig]] = Field(
        [], validate_default=True, description="several columns, as said above"
    )
    label: str | None = Field(
        None,
        min_length=1,
        description="write each picture's class, too: folder, the folder that it lies in; "
        "cls, webdataset's; or the field or column where it stands",
    )
    class_names: str | None = Field(
        None,
        description="names of the classes: a file with one a line, or ID<tab>NAME; imagenet: open_clip's, by number or id",
    )
    captions_only: bool = Field(False, description="records without their pictures, for `capsmith join`")
    replace_columns: bool = Field(
        False, description="replace captions that a record has in these columns already; else an error"
    )
    drop_text_embeddings: bool = Field(
        False,
        description="leave out a reinforced set's text embeddings, which its readers would "
        "pair with the new column's captions; else an error",
    )
    text_from_synthetic: bool = Field(
        False, description="the first synthetic caption as `txt`, not the first original"
    )
    limit: int | None = Field(
        None, gt=0, description="caption the first so many pictures only, and say what all would take"
    )
    dry_run: bool = Field(False, description="list the input, load the captioners, and write nothing")
    export_by_class: str | None = Field(
        None,
        description="folder on this machine for the captions as IDEA reads them: of each class a file, with a picture and a "
        "caption in a line",
    )
    max_error_rate: float = Field(
        0.1, ge=0, le=1, description="share of pictures that may fail before the exit code is 3"
    )
    push_to_hub: str | None = Field(
        None, pattern=r"[\w.-]+/[\w.-]+", description="org/name of a hub data set to upload the finished set to"
    )

    @model_validator(mode="before")
    @classmethod
    def _begin_with_the_recipe(cls, given: Any) -> Any:
        """The recipe's settings, below all that is given; columns that are as many as the recipe's are each above its own."""
        name = given.get("recipe") if isinstance(given, dict) else None
        if name not in RECIPES:
            return given
        import yaml  # late: it is not needed where no recipe is

        recipe = yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))
        if own := recipe.pop("columns", []):
            of_all = {name: value for name, value in given.items() if name in ColumnConfig.model_fields}
            own = [one | {name: of_all[name] for name in one if name in of_all} for one in own]
            columns = given.get("columns") or [{}] * len(own)
            if (
                isinstance(columns, list)
                and len(columns) == len(own)
                and all(isinstance(one, dict) for one in columns)
            ):
                given = given | {"columns": [below | above for below, above in zip(own, columns)]}
        return recipe | given

    @field_validator("columns", mode="before")
    @classmethod
    def _build_columns(cls, columns: Any, info: ValidationInfo) -> Any:
        """Each entry as a whole column: its own fields over those that stand beside the list."""
        if not isinstance(columns, list) or not all(isinstance(entry, dict | ColumnConfig) for entry in columns):
            return columns  # pydantic tells what is wrong with it
        entries = [entry if isinstance(entry, dict) else entry.model_dump(exclude_unset=True) for entry in columns]
        built, problems = [], []
        for number, entry in enumerate(entries):
            try:
                built.append(_column(info.data, entry))
                if not built[-1].model:
                    problems.append(f"columns[{number}]: has no model, nor is one given beside the list")
            except ValidationError as error:
                problems += [
                    f"columns[{number}].{'.'.join(map(str, detail['loc']))}: {detail['input']!r}: "
                    f"{detail['msg'].removeprefix('Value error, ')}"
                    for detail in error.errors()
                ]
        if not columns and "model" in info.data and not info.data["model"]:
            problems.append("--model: required")
        names = Counter(entry["column"] for entry in entries if isinstance(entry.get("column"), str))
        problems += [f"columns: {name} is named twice" for name, times in names.items() if times > 1]
        if problems:
            raise ValueError("; ".join(problems))
        return built

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = self.engine_problems()
        if self.engine == "ray" and self.limit:
            problems.append(
                "--limit: is a look by one process, of --engine embedded; a --dry-run tells what the cluster has"
            )
        if self.class_names and not self.label:
            problems.append("--class-names: are of the classes that --label finds, and it is not given")
        if not any(column.of_server for column in self.column_configs):
            problems += [
                f"--{name.replace('_', '-')}: is for a server's model, openai:http://host:port#model"
                for name, field in ServerConfig.model_fields.items()
                if getattr(self, name) != field.default
            ]
        configs = self.column_configs
        if not self.label and any("label" in column.task.names for column in configs):
            problems.append(
                "instruction: names label, the class that --label finds, and it is not given; json.label is a field"
            )
        if all(column.named_columns for column in configs):
            problems += problems_of_order([(column.named_columns, column.task.columns_read) for column in configs])
        if self.export_by_class and not self.label:
            problems.append("--export-by-class: is by the classes that --label finds, and it is not given")
        if self.text_model and not self.columns:
            problems.append("--text-model: is for a recipe with several columns; --model is the captioner of one")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def column_configs(self) -> Sequence[ColumnConfig]:
        """One for each column: those of the list, or the one that the configuration itself is."""
        return self.columns or [self]


def _column(common: Mapping[str, Any], entry: Mapping[str, Any]) -> ColumnConfig:
    """A column with the fields of its entry, or else with those beside the list that are no defaults.

    So a greedy column may leave num_captions out.
    """
    given = {
        name: common[name]
        for name, field in ColumnConfig.model_fields.items()
        if name in common and common[name] != field.default
    }
    if entry.get("text_only") and common.get("text_model") and "model" not in entry:
        given = {name: value for name, value in given.items() if name not in ("pretrained", "base")}
        given["model"] = common["text_model"]
    return ColumnConfig.model_validate({**given, **entry})
