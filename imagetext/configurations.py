"""Make the configuration of a command from its flags and a YAML file, and report all problems in them at once."""

import argparse
import difflib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from imagetext import limits
from imagetext.shown import in_yaml, say_file
from imagetext.stores import read_bytes

if TYPE_CHECKING:
    from pydantic import BaseModel

Config = TypeVar("Config", bound="BaseModel")
LONGEST_NUMBER = 1000  # characters of a number in YAML, where a number with colons may be of any size


def parse(command: str, config_type: type[Config], argv: Sequence[str]) -> Config:
    """Return the command's configuration: flags override the `--config` file, which overrides the defaults.

    pydantic-settings makes the flags. Their values are taken from argparse unchanged, because the decoding of
    pydantic-settings splits lists at commas (`scenes:train,n=9`), takes `{a,b}.tar` for JSON and stops at the first
    error.

    Raises ValueError that lists every problem, each with its flag or field and its value.
    """
    from pydantic import ValidationError

    names = argument_names(config_type)
    flags, problems = read_flags(flag_parser(command, config_type), list(filter(None, names.values())), argv)
    path, print_config = flags.pop("config", None), flags.pop("print_config", False)
    in_file, file_problems = read_config_file(path) if path is not None else ({}, [])
    # A flag without a value has its problem already; it is not also missing.
    without_value = {f"{problem.partition(':')[0]}: required" for problem in problems}
    problems += file_problems
    config = None
    try:
        config = config_type.model_validate(in_file | flags)
    except ValidationError as error:
        only_in_file = in_file.keys() - flags.keys()
        invalid = [describe(detail, path, only_in_file, names=names) for detail in error.errors()]
        problems += [problem for problem in invalid if problem not in without_value]
    if config is None or problems:
        raise ValueError("\n  ".join(["the configuration has problems:", *problems]))
    if print_config:
        say_file(in_yaml(config.model_dump(mode="json")))
        raise SystemExit(0)
    return config


def argument_names(config_type: "type[BaseModel]") -> dict[str, str]:
    """The name of each field on the command line: `--flag`, `POSITIONAL`, or "" if only a file can have the field."""
    from pydantic_settings import CliPositionalArg, CliSuppress

    (_, positional), (_, hidden) = get_args(CliPositionalArg), get_args(CliSuppress)
    names = {}
    for name, field in config_type.model_fields.items():
        if hidden in field.metadata:
            names[name] = ""
        elif positional in field.metadata:
            names[name] = name.upper()
        else:
            names[name] = "--" + name.replace("_", "-")
    return names


def flag_parser(command: str, config_type: Any) -> argparse.ArgumentParser:
    """Return an argument parser with a flag for each field, the required ones first.

    config_type: any pydantic model. It has the type Any because pydantic-settings accepts all models, but its types
        allow only its own kind.
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
    CliSettingsSource(
        config_type,
        root_parser=parser,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        add_argument_method=partial(_add_flag, required, options),
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


def _add_flag(
    required_flags: argparse._ArgumentGroup,
    options: argparse._ArgumentGroup,
    _: Any,
    *names: str,
    help: str,
    **settings: Any,
) -> None:
    """Add a flag, as pydantic-settings describes it, to the group of required flags or to that of options."""
    if help == argparse.SUPPRESS:
        return
    if "metavar" in settings:  # the value of a list[str] is a str, and the flag may be repeated
        settings["metavar"] = re.sub(r"^(?:list|tuple)\[(\{.*\}|\w+).*\]$", r"\1", settings["metavar"]).lower()
        settings["metavar"] = re.sub(r"^dict\[.*\]$", "name=value", settings["metavar"])
    group = required_flags if help.endswith("(required)") else options
    if not names[0].startswith("-"):  # a positional argument; if it is missing, validation reports it
        group, settings = required_flags, settings | {"nargs": "?", "default": argparse.SUPPRESS}
    help = re.sub(r" \((required|default: (None|\(\)|\[\]|\{\})?)\)$", "", help)
    group.add_argument(*names, help=help, **settings)


def read_flags(
    parser: argparse.ArgumentParser, flags: Sequence[str], argv: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the values of the flags, still as text, and the problems of the flags themselves.

    flags: the names of all flags, to suggest one for a misspelled name.
    """
    argv, problems = list(argv), []
    while True:
        try:
            namespace, words = parser.parse_known_args(argv)
            break
        except argparse.ArgumentError as error:  # a value is missing, or an on/off flag has one: note it and continue
            if error.argument_name is None:
                raise ValueError(error.message) from error
            names = error.argument_name.split("/")
            problems.append(f"{names[0]}: {error.message}")
            argv = [word for word in argv if word.partition("=")[0] not in names]
    problems += [
        unknown_name(word, flags) if word.startswith("-") else f"{word}: belongs to no flag" for word in words
    ]
    return vars(namespace), problems


def read_config_file(path: str) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of a YAML file, and the problems of the file."""
    import yaml

    try:
        text = read_bytes(path, limits.TEXT)
        depth = 0
        for count, event in enumerate(yaml.parse(text, yaml.SafeLoader), 1):
            if count == 2 * limits.YAML_VALUES:  # events: the beginnings and ends of values
                raise ValueError(f"holds more than {limits.YAML_VALUES:,} values")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > limits.DEPTH:  # the time to read nested brackets grows with the square of their number
                raise ValueError(f"is nested more than {limits.DEPTH} levels deep")
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
    """Raise ValueError for a YAML document whose aliases would expand to more than the limits, or to themselves.

    node: of the document, before its values are built.
    """
    waiting, count, size = [node], 0, 0
    while waiting:
        node = waiting.pop()
        count, size = count + 1, size + len(node.value) * (node.id == "scalar")
        if count > limits.YAML_VALUES or size > limits.TEXT:
            most = f"{limits.YAML_VALUES:,} values or {limits.TEXT:,} characters"
            raise ValueError(f"holds more than {most}, counting those that aliases repeat")
        if node.id == "scalar" and node.tag.endswith((":int", ":float")) and len(node.value) > LONGEST_NUMBER:
            raise ValueError(f"holds a number of {len(node.value):,} characters")
        if node.id == "mapping":  # its value is a list of pairs of nodes
            waiting += itertools.chain.from_iterable(node.value)
        elif node.id == "sequence":
            waiting += node.value


def describe(detail: Mapping[str, Any], path: str | None, in_file: Iterable[str], names: Mapping[str, str]) -> str:
    """Describe one of pydantic's errors on one line: the flag or field, its value, and what is wrong with it.

    path: the `--config` file. in_file: the fields that stand only there. names: of the fields as flags.
    """
    message = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"]:  # a rule about several fields, whose message names them
        return message
    name = detail["loc"][0]
    if detail["type"] == "missing":
        return f"{names[name]}: required"
    if detail["type"] == "extra_forbidden":
        return f"{path}: {unknown_name(name, names)}"
    if not names[name]:  # a field without a flag has many problems, which name their places themselves
        return f"{path}: {message}" if name in in_file else message
    where = f"{path}: {name}:" if name in in_file else names[name]
    return f"{where} {detail['input']}: {message}"


def check_hub_name(name: str) -> str:
    """Return the name of a repository on the Hub. Raises ValueError if it is not org/name."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError("is not org/name")
    return name


def unknown_name(name: str, valid_names: Iterable[str]) -> str:
    """The message for an unknown name, with the valid name that is most like it."""
    similar = difflib.get_close_matches(name.partition("=")[0], valid_names, n=1)
    return f"{name}: unknown" + (f"; did you mean {similar[0]}?" if similar else "")
