"""The command line: `capsmith COMMAND`, one function per command."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from imagetext.configurations import parse, unknown_name
from imagetext.shown import NOBODY_READS, at_terminal, exit_without_reader, say, say_error
from imagetext.stops import exit_code, interrupt_behind, open_standard_files, signals_as_interrupts


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
    """write a page of pictures of a captioned set with their captions"""
    from generate.sets.gallery import GalleryConfig

    config = parse("gallery", GalleryConfig, argv)
    from generate.sets.gallery import run

    return run(config)


def join(argv: Sequence[str]) -> int:
    """put captions from elsewhere into the shards of their pictures"""
    from generate.sets.join import JoinConfig

    config = parse("join", JoinConfig, argv)
    from generate.sets.join import run

    return run(config)


def select(argv: Sequence[str]) -> int:
    """write a smaller set of the captions and records with the best scores"""
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
    """measure how often CLIP models find the right class of labelled pictures"""
    from finetune.zero_shot.config import ZeroShotConfig

    config = parse("zero-shot", ZeroShotConfig, argv)
    from finetune.zero_shot.run import run

    return run(config)


def diversity(argv: Sequence[str]) -> int:
    """compare captioners by their captions: how faithful and how diverse these are"""
    from diversity.config import DiversityConfig

    config = parse("diversity", DiversityConfig, argv)
    from diversity.run import run

    return run(config)


def quickstart(argv: Sequence[str]) -> int:
    """run fine-tuning, captioning and the diversity report on a small built-in set, offline"""
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

    0: done. 1: shards failed or are missing. 2: wrong usage or bad input. 3: too many records failed.
    128 + N: ended by signal N. 141: the reader of the output has gone, as in `capsmith ... | head`.
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
        problem = unknown_name(command, COMMANDS) if command else "no command given"
        say(*overview(), "", f"capsmith: error: {problem}", file=sys.stderr)
        return 2
    if "OMP_WAIT_POLICY" not in os.environ:
        # Threads of torch that wait for one another spin for about 10 microseconds, and then sleep. By default they
        # spin for milliseconds, and where another process has the core of the one they wait for, a training step takes
        # ten times as long. If they sleep at once, it takes 1.3 times as long. torch reads this when it is imported.
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # of GNU's OpenMP
    open_standard_files()
    with signals_as_interrupts(), at_terminal():
        return _run(command, argv[1:])


def _run(command: str, argv: Sequence[str]) -> int:
    try:
        try:
            code = COMMANDS[command](argv)
            say()  # writes out what is buffered: a reader that has gone is noticed here
            return code
        except Exception as error:
            if stop := interrupt_behind(error):
                raise stop from None
            raise
    except ValueError as error:  # what the rooms raise on bad input; they name file, field and value
        say_error(command, error)
        return 2
    except BrokenPipeError:
        with suppress(SystemExit):
            exit_without_reader(sys.stdout)
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
    """Say on standard error that nobody reads the output, as after `capsmith ... | head`; return the exit code."""
    with suppress(SystemExit):  # nobody reads standard error either
        say(
            f"capsmith {command}: stopped, because nobody reads what it prints; the same command resumes",
            file=sys.stderr,
        )
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


if __name__ == "__main__":
    sys.exit(main())
