"""The configuration of `capsmith generate`. This module imports no torch, so that --help is quick."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

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

from captioners.server.config import ServerConfig
from generate.captions.column import ColumnConfig
from generate.captions.tasks import problems_of_order
from generate.runs.config import RunConfig
from imagetext.configurations import check_hub_name
from imagetext.readers.table_flags import TableFlags

RECIPES = {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}


def _check_recipe(name: str) -> str:
    if name not in RECIPES:
        raise ValueError(f"no such recipe; the recipes are {', '.join(RECIPES)}")
    return name


class GenerateConfig(RunConfig, ColumnConfig, TableFlags):
    """Caption pictures and write them as records, with several captions each. The same command again resumes.

    To write several caption columns in one run, list them under `columns` in the --config file. An entry needs only
    the fields in which its column differs from the settings outside the list (model, column, temperature, …).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Annotated[str, AfterValidator(_check_recipe)] | None = Field(
        None,
        description=f"settings of a published method, which other flags override: {', '.join(RECIPES)}; the recipe's "
        "file says which settings are the paper's",
    )
    text_model: str | None = Field(
        None,
        description="captioner of the text-only columns of a recipe with several columns (default: that of --model)",
    )
    input: list[str] = Field(
        min_length=1,
        description="pictures to caption: shards, folder, CSV, JSONL, Parquet, caption set, or scenes:…; repeatable",
    )
    columns: CliSuppress[list[ColumnConfig]] = Field(
        [], validate_default=True, description="several columns, as described above"
    )
    label: str | None = Field(
        None,
        min_length=1,
        description="also write each picture's class, which is read from: folder (the name of the picture's folder), "
        "cls (webdataset's member), or the name of a field or table column",
    )
    class_names: str | None = Field(
        None,
        description="names of the classes: a file with one name or ID<tab>NAME in a line; or imagenet, for "
        "open_clip's names by class number or id",
    )
    captions_only: bool = Field(False, description="write records without their pictures, for `capsmith join`")
    replace_columns: bool = Field(
        False,
        description="replace the captions that a record already has in the columns to write; without this flag, such "
        "captions are an error",
    )
    drop_text_embeddings: bool = Field(
        False,
        description="remove the text embeddings of a reinforced set, which do not belong to the new captions; without "
        "this flag, they are an error",
    )
    text_from_synthetic: bool = Field(
        False, description="write the first synthetic caption as `txt`, instead of the first original caption"
    )
    limit: int | None = Field(
        None,
        gt=0,
        description="caption only the first LIMIT pictures, and estimate what the whole input would take",
    )
    dry_run: bool = Field(False, description="list the input and load the captioners, but write nothing")
    export_by_class: str | None = Field(
        None,
        description="local folder for the captions in IDEA's format: one file for each class, with a picture and a "
        "caption in each line",
    )
    max_error_rate: float = Field(
        0.1, ge=0, le=1, description="share of pictures that may fail; if more fail, the exit code is 3"
    )
    push_to_hub: Annotated[str, AfterValidator(check_hub_name)] | None = Field(
        None,
        description="upload the finished set to this data set (org/name) on the Hugging Face Hub",
    )

    @model_validator(mode="before")
    @classmethod
    def _begin_with_the_recipe(cls, values: Any) -> Any:
        """Take the recipe's settings for all that is not given.

        If there are as many columns given as the recipe has, each overrides the recipe's column at its position.
        """
        name = values.get("recipe") if isinstance(values, dict) else None
        if name not in RECIPES:
            return values
        import yaml  # late: needed only for recipes

        recipe = yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))
        if recipe_columns := recipe.pop("columns", []):
            common = {name: value for name, value in values.items() if name in ColumnConfig.model_fields}
            recipe_columns = [
                entry | {name: common[name] for name in entry if name in common} for entry in recipe_columns
            ]
            columns = values.get("columns") or [{}] * len(recipe_columns)
            same_number = isinstance(columns, list) and len(columns) == len(recipe_columns)
            if same_number and all(isinstance(entry, dict) for entry in columns):
                merged = [of_recipe | entry for of_recipe, entry in zip(recipe_columns, columns)]
                values = values | {"columns": merged}
        return recipe | values

    @field_validator("columns", mode="before")
    @classmethod
    def _build_columns(cls, columns: Any, info: ValidationInfo) -> Any:
        """Build a whole column of each entry: its own fields, and the fields outside the list for all others."""
        if not isinstance(columns, list) or not all(isinstance(entry, dict | ColumnConfig) for entry in columns):
            return columns  # pydantic reports what is wrong with it
        entries = [entry if isinstance(entry, dict) else entry.model_dump(exclude_unset=True) for entry in columns]
        built, problems = [], []
        for number, entry in enumerate(entries):
            try:
                built.append(_build_column(info.data, entry))
                if not built[-1].model:
                    problems.append(f"columns[{number}]: has no model, nor is one given outside the list (--model)")
            except ValidationError as error:
                for detail in error.errors():
                    field = "".join(f".{part}" for part in detail["loc"])
                    value = f"{detail['input']!r}: " if field else ""  # else it is the whole column
                    message = detail["msg"].removeprefix("Value error, ")
                    problems.append(f"columns[{number}]{field}: {value}{message}")
        if not columns and "model" in info.data and not info.data["model"]:
            problems.append("--model: required")
        names = Counter(entry["column"] for entry in entries if isinstance(entry.get("column"), str))
        problems += [f"columns: {name} is named twice" for name, count in names.items() if count > 1]
        if problems:
            raise ValueError("; ".join(problems))
        return built

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = self.engine_problems()
        configs = self.column_configs
        if self.engine == "ray" and self.limit:
            problems.append(
                "--limit: works in one process, with --engine embedded; --dry-run shows what the cluster has"
            )
        if self.class_names and not self.label:
            problems.append("--class-names: needs --label, which says where the classes are")
        if not any(column.of_server for column in configs):
            problems += [
                f"--{name.replace('_', '-')}: is for a server's model, openai:http://host:port#model"
                for name, field in ServerConfig.model_fields.items()
                if getattr(self, name) != field.default
            ]
        if self.text_from_synthetic and (self.captions_only or self.format != "webdataset"):
            without = "records of --captions-only" if self.captions_only else f"records in {self.format}"
            problems.append(f"--text-from-synthetic: writes `txt`, which {without} do not have")
        if not self.label and any("label" in column.task.names for column in configs):
            problems.append(
                "instruction: names label, the class, which needs --label; a field called label is json.label"
            )
        if all(column.named_columns for column in configs):
            problems += problems_of_order([(column.named_columns, column.task.columns_read) for column in configs])
        if self.export_by_class and not self.label:
            problems.append("--export-by-class: needs --label, which says where the classes are")
        if self.columns and self.column and not any(column.column == self.column for column in self.columns):
            problems.append(f"--column {self.column}: is the name of no column in the list; name each column there")
        if self.text_model and not self.columns:
            problems.append("--text-model: is for a recipe with several columns; name the captioner by --model")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def column_configs(self) -> Sequence[ColumnConfig]:
        """The configurations of all columns: the list, or this configuration itself where there is no list."""
        return self.columns or [self]

    @property
    def warnings_of_unused_settings(self) -> list[str]:
        """Return a line for each setting that is given and has an effect on no column.

        Columns share the settings outside their list, so one that another column uses is left out, and with a recipe
        all are: a flag may replace what its other settings are for.
        """
        columns = [] if self.recipe else self.column_configs
        unused = [column.unused_settings for column in columns]
        warnings = {}
        for column, reasons in zip(columns, unused):
            for name, reason in reasons.items():
                is_used = any(
                    getattr(other, name) == getattr(column, name) and name not in reasons_of_other
                    for other, reasons_of_other in zip(columns, unused)
                )
                if not is_used:
                    warnings[name] = f"--{name.replace('_', '-')} has no effect: it {reason}"
        return list(warnings.values())


def _build_column(common: Mapping[str, Any], entry: Mapping[str, Any]) -> ColumnConfig:
    """Build a column of the fields of its entry, and of those fields outside the list that are not at their default.

    Because defaults are left out, an entry with the greedy strategy needs no num_captions.
    """
    values = {
        name: common[name]
        for name, field in ColumnConfig.model_fields.items()
        if name in common and common[name] != field.default
    }
    if entry.get("text_only") and common.get("text_model") and "model" not in entry:
        values = {name: value for name, value in values.items() if name not in ("pretrained", "base")}
        values["model"] = common["text_model"]
    return ColumnConfig.model_validate({**values, **entry})
