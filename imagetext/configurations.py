"""From flags and a YAML file to the configuration of a command, with all that is wrong in them at once."""

import argparse
import difflib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from imagetext import limits
from imagetext.shown import in_yaml, say_file
from imagetext.stores import read_bytes

if TYPE_CHECKING:
    from pydantic import BaseModel

Config = TypeVar("Config", bound="BaseModel")
LONGEST_NUMBER = 1000  # in a configuration, in characters: colons make numbers of any size


def parse(command: str, config_type: type[Config], argv: Sequence[str]) -> Config:
    """The command's configuration: flags over the `--config` file over defaults.

    pydantic-settings makes the flags. Their values are read from argparse as they stand, because its own decoding
    splits lists at commas (`scenes:train,n=9`), takes `{a,b}.tar` for JSON and stops at the first error.

    Raises: ValueError that lists every problem, each with its flag or field and its value.
    """
    from pydantic import ValidationError

    names = argument_names(config_type)
    given, problems = read_flags(flag_parser(command, config_type), list(filter(None, names.values())), argv)
    path, print_config = given.pop("config", None), given.pop("print_config", False)
    in_file, file_problems = read_config_file(path) if path is not None else ({}, [])
    valueless = {f"{problem.partition(':')[0]}: required" for problem in problems}
    problems += file_problems
    config = None
    try:
        config = config_type.model_validate(in_file | given)
    except ValidationError as error:
        invalid = [describe(detail, path, in_file.keys() - given.keys(), names) for detail in error.errors()]
        problems += [problem for problem in invalid if problem not in valueless]
    if config is None or problems:
        raise ValueError("\n  ".join(["the configuration has problems:", *problems]))
    if print_config:
        say_file(in_yaml(config.model_dump(mode="json")))
        raise SystemExit(0)
    return config


def argument_names(config_type: "type[BaseModel]") -> dict[str, str]:
    """What each field is called on the command line: --flag, or POSITIONAL; "" where only a file can have it."""
    from pydantic_settings import CliPositionalArg, CliSuppress

    (_, positional), (_, hidden) = get_args(CliPositionalArg), get_args(CliSuppress)
    return {
        name: ""
        if hidden in field.metadata
        else name.upper()
        if positional in field.metadata
        else "--" + name.replace("_", "-")
        for name, field in config_type.model_fields.items()
    }


def flag_parser(command: str, config_type: Any) -> argparse.ArgumentParser:
    """An argument parser with a flag for each field, the required ones first.

    config_type: a pydantic model; pydantic-settings says that it takes its own kind of model, but takes any.
    """
    from pydantic_settings import CliSettingsSource

    usage = [
        argument if argument.isupper() else f"{argument} {name.upper()}"
        for name, argument in argument_names(config_type).items()
        if config_type.model_fields[name].is_required()
    ]
    parser = argparse.ArgumentParser(
        usage=" ".join([f"capsmith {command}", *usage, "[options]"]),
        allow_abbrev=False,
        description=config_type.__doc__,
        add_help=False,
        exit_on_error=False,
    )
    required = parser.add_argument_group("required")
    options = parser.add_argument_group("options")

    def add_flag(_: Any, *names: str, help: str, **settings: Any) -> None:
        if "metavar" in settings:  # a list[str] is a str, given again and again
            settings["metavar"] = re.sub(r"^(?:list|tuple)\[(\w+).*\]$", r"\1", settings["metavar"]).lower()
            settings["metavar"] = re.sub(r"^dict\[.*\]$", "name=value", settings["metavar"])
        if help == argparse.SUPPRESS:
            return
        group = required if help.endswith("(required)") else options
        if not names[0].startswith("-"):  # a positional argument; where it is missing, validation says so
            group, settings = required, settings | {"nargs": "?", "default": argparse.SUPPRESS}
        help = re.sub(r" \((required|default: (None|\(\)|\[\]|\{\})?)\)$", "", help)
        group.add_argument(*names, help=help, **settings)

    CliSettingsSource(
        config_type,
        root_parser=parser,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        add_argument_method=add_flag,
    )
    options.add_argument(
        "--config", metavar="FILE", default=argparse.SUPPRESS, help="YAML file of these fields; flags override it"
    )
    options.add_argument(
        "--print-config",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print the whole configuration as YAML, and stop",
    )
    options.add_argument("-h", "--help", action="help", help="print this, and stop")
    return parser


def read_flags(
    parser: argparse.ArgumentParser, known: Sequence[str], argv: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """The values as given, still text, and what is wrong with the flags themselves."""
    argv, problems = list(argv), []
    while True:
        try:
            namespace, rest = parser.parse_known_args(argv)
            break
        except argparse.ArgumentError as error:  # no value, or one for an on/off flag: note it and read on
            if error.argument_name is None:
                raise ValueError(error.message) from error
            names = error.argument_name.split("/")
            problems.append(f"{names[0]}: {error.message}")
            argv = [word for word in argv if word.partition("=")[0] not in names]
    problems += [unknown(word, known) if word.startswith("-") else f"{word}: belongs to no flag" for word in rest]
    return vars(namespace), problems


def read_config_file(path: str) -> tuple[dict[str, Any], list[str]]:
    """The fields of a YAML file, and what is wrong with the file."""
    import yaml

    try:
        text, most = read_bytes(path, limits.TEXT), 2 * limits.YAML_VALUES  # begins and ends of values
        if sum(1 for _ in itertools.islice(yaml.parse(text, yaml.SafeLoader), most)) == most:
            raise ValueError(f"holds more than {limits.YAML_VALUES:,} values")
        loader = yaml.SafeLoader(text)
        if (node := loader.get_single_node()) is not None:
            check_yaml(node)
        content = node and loader.construct_document(node)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        return {}, [f"--config {path}: {error}"]
    if content is None:
        return {}, []
    if not isinstance(content, dict):
        return {}, [f"--config {path}: must hold fields and values, not {content!r}"]
    return {str(name): value for name, value in content.items()}, []


def check_yaml(node: Any) -> None:
    """Refuses a document, before values are made of it, whose aliases stand for more than memory holds, or for themselves."""
    waiting, count, size = [node], 0, 0
    while waiting:
        node = waiting.pop()
        count, size = count + 1, size + len(node.value) * (node.id == "scalar")
        if count > limits.YAML_VALUES or size > limits.TEXT:
            most = f"{limits.YAML_VALUES:,} values or {limits.TEXT:,} characters"
            raise ValueError(f"holds more than {most}, those that aliases repeat included")
        if node.id == "scalar" and node.tag.endswith((":int", ":float")) and len(node.value) > LONGEST_NUMBER:
            raise ValueError(f"holds a number of {len(node.value):,} characters")
        if node.id == "mapping":  # of pairs of nodes
            waiting += itertools.chain.from_iterable(node.value)
        elif node.id == "sequence":
            waiting += node.value


def describe(detail: Mapping[str, Any], path: str | None, in_file: Iterable[str], names: Mapping[str, str]) -> str:
    """One line for one of pydantic's errors: where it was written, the value, what is wrong with it."""
    message = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"]:  # a rule over several fields names them itself
        return message
    name = detail["loc"][0]
    if detail["type"] == "missing":
        return f"{names[name]}: required"
    if detail["type"] == "extra_forbidden":
        return f"{path}: {unknown(name, names)}"
    if not names[name]:  # its problems are many, and name their own places
        return f"{path}: {message}" if name in in_file else message
    where = f"{path}: {name}:" if name in in_file else names[name]
    return f"{where} {detail['input']}: {message}"


def unknown(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.partition("=")[0], known, n=1)
    return f"{name}: unknown" + (f"; did you mean {near[0]}?" if near else "")
