"""The command line: `capsmith COMMAND`, one function per command."""

import argparse
import difflib
import itertools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from imagetext.shown import NOBODY_READS, at_terminal, end_unread, in_yaml, say, say_error
from imagetext.stops import ending_in_order, exit_code, open_standard_files

Config = TypeVar("Config")
LONGEST_NUMBER = 1000  # in a configuration, in characters: colons make numbers of any size


def finetune(argv: Sequence[str]) -> int:
    """fine-tune a captioner on captioned pictures"""
    if "--list-recipes" in argv:
        from finetune.captioner.recipes import list_recipes

        say(*list_recipes().split("\n"))
        return 0
    from finetune.captioner.config import FinetuneConfig

    config = parse("finetune", FinetuneConfig, argv)
    from finetune.captioner.run import run

    return run(config)


def generate(argv: Sequence[str]) -> int:
    """caption pictures, several captions each, into records"""
    from generate.captions.config import GenerateConfig

    config = parse("generate", GenerateConfig, argv)
    from generate.captions.run import run

    return run(config)


def verify(argv: Sequence[str]) -> int:
    """check a captioned set: files, counts, keys, every record"""
    from generate.sets.verify import VerifyConfig

    config = parse("verify", VerifyConfig, argv)
    from generate.sets.verify import run

    return run(config)


def gallery(argv: Sequence[str]) -> int:
    """a page of pictures of a captioned set with their captions"""
    from generate.sets.gallery import GalleryConfig

    config = parse("gallery", GalleryConfig, argv)
    from generate.sets.gallery import run

    return run(config)


def join(argv: Sequence[str]) -> int:
    """put captions that were written apart into the shards of their pictures"""
    from generate.sets.join import JoinConfig

    config = parse("join", JoinConfig, argv)
    from generate.sets.join import run

    return run(config)


def select(argv: Sequence[str]) -> int:
    """choose captions and records by their scores, into a smaller set"""
    from generate.select.config import SelectConfig

    config = parse("select", SelectConfig, argv)
    from generate.select.run import run

    return run(config)


def reinforce(argv: Sequence[str]) -> int:
    """add views and teachers' embeddings to captioned records"""
    from generate.reinforce.config import ReinforceConfig

    config = parse("reinforce", ReinforceConfig, argv)
    from generate.reinforce.run import run

    return run(config)


def train_student(argv: Sequence[str]) -> int:
    """train a CLIP model on reinforced records"""
    from finetune.student.config import StudentConfig

    config = parse("train-student", StudentConfig, argv)
    from finetune.student.run import run

    return run(config)


def zero_shot(argv: Sequence[str]) -> int:
    """ask CLIP models for the class of labelled pictures"""
    from finetune.zero_shot.config import ZeroShotConfig

    config = parse("zero-shot", ZeroShotConfig, argv)
    from finetune.zero_shot.run import run

    return run(config)


def diversity(argv: Sequence[str]) -> int:
    """measure how diverse, long and sound captions are"""
    from diversity.config import DiversityConfig

    config = parse("diversity", DiversityConfig, argv)
    from diversity.run import run

    return run(config)


def quickstart(argv: Sequence[str]) -> int:
    """see the whole product at work in a few minutes, offline"""
    from quickstart import QuickstartConfig

    config = parse("quickstart", QuickstartConfig, argv)
    from quickstart import run

    return run(config)


COMMANDS = {
    command.__name__.replace("_", "-"): command
    for command in (
        finetune,
        generate,
        verify,
        gallery,
        join,
        select,
        reinforce,
        train_student,
        zero_shot,
        diversity,
        quickstart,
    )
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 done, 1 shards failed or missing, 2 usage, 3 above the error rate; 128 and its number where a signal ended it, 141 where nobody
    reads what it prints.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    command = argv[0] if argv else ""
    if command in ("-h", "--help"):
        say(*overview())
        return 0
    if command == "--version":
        from importlib.metadata import version

        say(f"capsmith {version('capsmith')}")
        return 0
    if command not in COMMANDS:
        problem = unknown(command, COMMANDS) if command else "no command given"
        say(*overview(), "", f"capsmith: error: {problem}", file=sys.stderr)
        return 2
    open_standard_files()
    with ending_in_order(), at_terminal():
        return _run(command, argv[1:])


def _run(command: str, argv: Sequence[str]) -> int:
    try:
        code = COMMANDS[command](argv)
        say()  # or nobody would hear that nobody reads it
        return code
    except ValueError as error:  # what the rooms raise on bad input; they name file, field and value
        say_error(command, error)
        return 2
    except BrokenPipeError:
        with suppress(SystemExit):
            end_unread(sys.stdout)
        return _nobody_reads(command)
    except SystemExit as end:
        if end.code != NOBODY_READS:
            raise
        return _nobody_reads(command)
    except OSError as error:  # a full disk, a store that does not answer
        say_error(command, error)
        return 1
    except KeyboardInterrupt as stop:
        say(f"capsmith {command}: interrupted; the same command resumes", file=sys.stderr)
        return exit_code(stop)


def _nobody_reads(command: str) -> int:
    """Says, if anybody reads that, that what is printed goes nowhere, as in `capsmith ... | head`; the exit code of SIGPIPE."""
    with suppress(SystemExit):
        say(f"capsmith {command}: stopped, for nobody reads what it prints; the same command resumes", file=sys.stderr)
    return NOBODY_READS


def overview() -> list[str]:
    """The lines of `capsmith --help`."""
    lines = [f"  {name:15}{command.__doc__}" for name, command in COMMANDS.items()]
    return [
        "usage: capsmith COMMAND [--help] [flags]",
        "",
        "commands:",
        *lines,
        "",
        "  --version   print the version",
        "  --help      print this; `capsmith COMMAND --help` its flags",
    ]


# --- from flags and a YAML file to a configuration -----------------------------------------------------------------


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
    try:
        config = config_type.model_validate(in_file | given)
    except ValidationError as error:
        found = [describe(detail, path, in_file.keys() - given.keys(), names) for detail in error.errors()]
        problems += [problem for problem in found if problem not in valueless]
    if problems:
        raise ValueError("\n  ".join(["the configuration has problems:", *problems]))
    if print_config:
        print(in_yaml(config.model_dump(mode="json")), end="")  # as it is: a file
        raise SystemExit(0)
    return config


def argument_names(config_type: type) -> dict[str, str]:
    """What each field is called on the command line: --flag, or POSITIONAL; "" where only a file can have it."""
    from pydantic_settings import CliPositionalArg, CliSuppress

    (positional,), (hidden,) = CliPositionalArg.__metadata__, CliSuppress.__metadata__
    return {
        name: ""
        if hidden in field.metadata
        else name.upper()
        if positional in field.metadata
        else "--" + name.replace("_", "-")
        for name, field in config_type.model_fields.items()
    }


def flag_parser(command: str, config_type: type) -> argparse.ArgumentParser:
    """An argument parser with a flag for each field, the required ones first."""
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
            names = error.argument_name.split("/")
            problems.append(f"{names[0]}: {error.message}")
            argv = [word for word in argv if word.partition("=")[0] not in names]
    problems += [unknown(word, known) if word.startswith("-") else f"{word}: belongs to no flag" for word in rest]
    return vars(namespace), problems


def read_config_file(path: str) -> tuple[dict[str, Any], list[str]]:
    """The fields of a YAML file, and what is wrong with the file."""
    import yaml

    from imagetext import limits
    from imagetext.stores import read_bytes

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
    """Refuses a document, as it is before values are made, in which aliases stand for more than memory holds, or for themselves."""
    from imagetext import limits

    waiting, count, size = [node], 0, 0
    while waiting:
        one = waiting.pop()
        count, size = count + 1, size + len(one.value) * (one.id == "scalar")
        if count > limits.YAML_VALUES or size > limits.TEXT:
            most = f"{limits.YAML_VALUES:,} values or {limits.TEXT:,} characters"
            raise ValueError(f"holds more than {most}, those that aliases repeat included")
        if one.id == "scalar" and one.tag.endswith((":int", ":float")) and len(one.value) > LONGEST_NUMBER:
            raise ValueError(f"holds a number of {len(one.value):,} characters")
        # A mapping has pairs of nodes.
        waiting += (
            itertools.chain.from_iterable(one.value) if one.id == "mapping" else one.value * (one.id == "sequence")
        )


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


if __name__ == "__main__":
    sys.exit(main())
