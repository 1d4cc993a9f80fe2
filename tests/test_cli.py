"""The command line: flags override the file, which overrides defaults; all problems in one message; no tracebacks."""

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import CliPositionalArg, CliSuppress

import capsmith

ROOT = Path(capsmith.__file__).parent


class Demo(BaseModel):
    """A command for the tests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: list[str] = Field(description="what to read")
    model: str = Field(description="the captioner")
    num_captions: int = Field(5, gt=0, description="captions per picture, 100 % of them")
    top_p: float = Field(0.9, gt=0, le=1, description="nucleus")
    max_length: int | None = Field(None, description="tokens")
    strategy: Literal["sample", "greedy"] = Field("sample", description="how")
    prompt: str = Field("", description="first words")
    overwrite: bool = Field(False, description="start anew")

    @model_validator(mode="after")
    def _greedy_is_one(self):
        if self.strategy == "greedy" and self.num_captions != 1:
            raise ValueError(f"num_captions {self.num_captions}: greedy gives one caption")
        return self


NEEDED = ["--input", "a", "--model", "m"]


def parse(*argv: str) -> Demo:
    return capsmith.parse("demo", Demo, argv)


def problems(*argv: str) -> list[str]:
    with pytest.raises(ValueError) as caught:
        parse(*argv)
    first, *lines = str(caught.value).splitlines()
    assert first == "the configuration has problems:"
    return [line.strip() for line in lines]


@pytest.fixture
def recipe(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


# --- values ----------------------------------------------------------------------------------------------------------


def test_flags_are_flat_kebab_case_and_lists_repeat():
    config = parse(
        "--input", "a", "--model", "m", "--num-captions", "3", "--input=b", "--overwrite", "--max-length", "30"
    )
    assert config == Demo(input=["a", "b"], model="m", num_captions=3, overwrite=True, max_length=30)


@pytest.mark.parametrize(
    "text",
    [
        "scenes:train,n=100,level=2",
        "{a,b}.tar",
        "shards/{00..09}.tar",
        "[1].jpg",
        'a "b" c',
        "null",
        "None",
        "",
        " a ",
        "{",
        "été %s",
        "a=b",
    ],
)
def test_a_value_is_what_was_typed(text):
    config = parse("--input", text, "--input", text, "--model", text, f"--prompt={text}")
    assert (config.input, config.model, config.prompt) == ([text, text], text, text)


def test_a_value_may_start_with_a_dash_after_an_equals_sign():
    assert parse(*NEEDED, "--prompt=-x --y").prompt == "-x --y"


def test_flags_override_the_file_which_overrides_defaults(recipe):
    path = recipe("input: [f]\nmodel: from_file\ntop_p: 0.5\noverwrite: true\n")
    config = parse("--config", path, "--model", "from_flag", "--no-overwrite")
    assert config == Demo(input=["f"], model="from_flag", top_p=0.5, overwrite=False)


def test_print_config_prints_a_file_that_gives_the_same_configuration(recipe, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*NEEDED, "--top-p", "1e-05", "--prompt", "é: {x}", "--print-config")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed).keys() == Demo.model_fields.keys()
    assert parse("--config", recipe(printed)) == parse(*NEEDED, "--top-p", "1e-05", "--prompt", "é: {x}")


def test_the_environment_does_not_leak_in(monkeypatch):
    for name in Demo.model_fields:
        monkeypatch.setenv(name, "7")
        monkeypatch.setenv(name.upper(), "7")
        monkeypatch.setenv(f"CAPSMITH_{name.upper()}", "7")
    assert parse(*NEEDED) == Demo(input=["a"], model="m")


class DemoOfFolder(BaseModel):
    """A command with a positional argument, and a field that only a file can have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: CliPositionalArg[Path] = Field(description="what to read")
    number: int = Field(3, gt=0, description="how many")
    entries: CliSuppress[list[dict[str, int]]] = Field([], description="in the file")

    @field_validator("entries")
    @classmethod
    def _are_few(cls, entries):
        if len(entries) > 1:
            raise ValueError(f"entries[1]: is one too many of {len(entries)}")
        return entries


def test_a_positional_argument_may_stand_anywhere_and_a_hidden_field_only_in_the_file(recipe, capsys):
    path = recipe("entries: [{a: 1}]\n")
    expected = DemoOfFolder(folder="some/where", number=4, entries=[{"a": 1}])
    for argv in (["some/where", "--number", "4"], ["--number", "4", "some/where"]):
        assert capsmith.parse("demo", DemoOfFolder, [*argv, "--config", path]) == expected
    with pytest.raises(SystemExit):
        capsmith.parse("demo", DemoOfFolder, ["--help"])
    text = capsys.readouterr().out
    assert "usage: capsmith demo FOLDER [options]" in text and "entries" not in text


def test_problems_of_positional_arguments_and_hidden_fields_name_them(recipe):
    path = recipe("entries: [{a: 1}, {b: 2}]\n")
    for argv, expected in (
        (["--number", "0"], ["FOLDER: required", "--number 0: Input should be greater than 0"]),
        (["a", "b", "--folder", "c"], ["b: belongs to no flag", "--folder: unknown", "c: belongs to no flag"]),
        (["a", "--entries", "c"], ["--entries: unknown", "c: belongs to no flag"]),
        (["a", "--config", path], [f"{path}: entries[1]: is one too many of 2"]),
    ):
        with pytest.raises(ValueError) as caught:
            capsmith.parse("demo", DemoOfFolder, argv)
        assert [line.strip() for line in str(caught.value).splitlines()[1:]] == expected


# --- problems --------------------------------------------------------------------------------------------------------


def test_every_problem_is_in_one_message():
    reported = problems(
        "--zzz",
        "x",
        "--num_captions",
        "3",
        "--top-p",
        "7",
        "--max-length",
        "long",
        "--strategy",
        "best",
        "--overwrite=yes",
        "--model",
    )
    assert reported == [
        "--overwrite: ignored explicit argument 'yes'",
        "--model: expected one argument",
        "--zzz: unknown",
        "x: belongs to no flag",
        "--num_captions: unknown; did you mean --num-captions?",
        "3: belongs to no flag",
        "--input: required",
        "--top-p 7: Input should be less than or equal to 1",
        "--max-length long: Input should be a valid integer, unable to parse string as an integer",
        "--strategy best: Input should be 'sample' or 'greedy'",
    ]


def test_problems_of_the_file_name_the_file_and_stand_beside_those_of_flags(recipe):
    path = recipe("topp: 0.5\nmax_length: long\nmodel: m\n3: x\nnum_captions: 0\n")
    assert problems("--config", path, "--top-p", "7", "--num-captions", "2") == [
        "--input: required",
        "--top-p 7: Input should be less than or equal to 1",
        f"{path}: max_length: long: Input should be a valid integer, unable to parse string as an integer",
        f"{path}: topp: unknown; did you mean top_p?",
        f"{path}: 3: unknown",
    ]


def test_flags_are_not_abbreviated():
    assert "--mod: unknown; did you mean --model?" in problems("--input", "a", "--mod", "m")


def test_a_rule_over_several_fields_is_a_clean_problem():
    assert problems(*NEEDED, "--strategy", "greedy") == ["num_captions 5: greedy gives one caption"]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("[1, 2]", "must hold fields and values"),
        ("a: [", "while parsing"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_configuration_is_a_clean_problem(recipe, text, reason):
    path = recipe(text)
    assert any(line.startswith(f"--config {path}: ") for line in problems("--config", path, *NEEDED))
    assert reason in " ".join(problems("--config", path, *NEEDED))


def test_a_missing_file_is_named(tmp_path):
    assert "No such file" in problems("--config", str(tmp_path / "none.yaml"), *NEEDED)[0]


def test_an_empty_file_is_all_defaults(recipe):
    assert parse("--config", recipe(""), *NEEDED) == parse(*NEEDED)


# --- the whole program -----------------------------------------------------------------------------------------------


def test_help_lists_the_commands(capsys):
    assert capsmith.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in capsmith.COMMANDS.items():
        assert f"  {name:15}{command.__doc__}" in lines
    assert list(capsmith.COMMANDS) == [
        "finetune",
        "generate",
        "verify",
        "gallery",
        "join",
        "select",
        "reinforce",
        "train-student",
        "zero-shot",
        "diversity",
        "quickstart",
    ]


def test_the_version_is_printed(capsys):
    assert capsmith.main(["--version"]) == 0
    assert capsys.readouterr().out == "capsmith 0.2.0\n"


@pytest.mark.parametrize(
    "argv, message", [([], "no command given"), (["genrate"], "did you mean generate?"), (["--x"], "--x: unknown")]
)
def test_no_such_command_is_usage(argv, message, capsys):
    assert capsmith.main(argv) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("asked, policy, spins", [(None, "passive", "1000"), ("active", "active", "None")])
def test_threads_soon_sleep_while_they_wait_unless_the_user_says_otherwise(asked, policy, spins, monkeypatch):
    """Runs in a new process: torch reads the variables at its import, so they must be set before."""
    program = (
        "import os, sys, capsmith\n"
        "def show(argv):\n"
        "    print(os.environ['OMP_WAIT_POLICY'], os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)\n"
        "    return 0\n"
        "capsmith.COMMANDS['show'] = show\n"
        "sys.exit(capsmith.main(['show']))"
    )
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    if asked:
        monkeypatch.setenv("OMP_WAIT_POLICY", asked)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [policy, spins, "False"]


@pytest.mark.parametrize("command", list(capsmith.COMMANDS))
def test_each_command_has_help_for_every_flag(command, capsys):
    with pytest.raises(SystemExit) as caught:
        capsmith.main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for line in text.partition("options:\n")[2].splitlines():
        if line.startswith("  --"):  # the help text is on the same line or on the next one
            flag = line.split()[0]
            assert len(line.split()) > 1, f"{flag} has no help"
    assert "dict[" not in text and "default: []" not in text
    assert f"usage: capsmith {command}" in text and "--print-config" in text and "--config" in text


@pytest.mark.parametrize(
    "command, config_type",
    [
        ("finetune", "finetune.captioner.config.FinetuneConfig"),
        ("generate", "generate.captions.config.GenerateConfig"),
        ("verify", "generate.sets.verify.VerifyConfig"),
        ("gallery", "generate.sets.gallery.GalleryConfig"),
        ("join", "generate.sets.join.JoinConfig"),
        ("select", "generate.select.config.SelectConfig"),
        ("reinforce", "generate.reinforce.config.ReinforceConfig"),
        ("train-student", "finetune.student.config.StudentConfig"),
        ("zero-shot", "finetune.zero_shot.config.ZeroShotConfig"),
        ("diversity", "diversity.config.DiversityConfig"),
        ("quickstart", "quickstart.QuickstartConfig"),
    ],
)
def test_each_configuration_is_frozen_forbids_unknown_fields_and_describes_all(command, config_type):
    module, _, name = config_type.rpartition(".")
    config = getattr(__import__(module, fromlist=[name]), name)
    assert config.model_config["frozen"] and config.model_config["extra"] == "forbid"
    assert [field for field, info in config.model_fields.items() if not info.description] == []


def test_a_bad_configuration_exits_2_with_one_message(capsys):
    assert capsmith.main(["generate", "--zzz", "--top-p", "7"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("capsmith generate: error: the configuration has problems:\n")
    assert "--zzz: unknown" in error and "--top-p 7:" in error and "--output: required" in error


def test_a_rooms_value_error_exits_2_and_others_are_not_hidden(monkeypatch, capsys):
    def raising(error):
        def command(argv):
            raise error

        return command

    monkeypatch.setitem(capsmith.COMMANDS, "generate", raising(ValueError("input nowhere.tar: no such file")))
    assert capsmith.main(["generate"]) == 2
    assert capsys.readouterr().err == "capsmith generate: error: input nowhere.tar: no such file\n"
    monkeypatch.setitem(capsmith.COMMANDS, "generate", raising(OSError(28, "No space left on device", "out/a.tar")))
    assert capsmith.main(["generate"]) == 1
    assert capsys.readouterr().err == "capsmith generate: error: [Errno 28] No space left on device: 'out/a.tar'\n"
    monkeypatch.setitem(capsmith.COMMANDS, "generate", raising(KeyboardInterrupt()))
    assert capsmith.main(["generate"]) == 130
    monkeypatch.setitem(capsmith.COMMANDS, "generate", raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError):
        capsmith.main(["generate"])


def test_python_m_capsmith_is_the_same_program_and_reports_without_a_traceback(tmp_path):
    options = ["--input", str(tmp_path / "nowhere.jsonl"), "--output", str(tmp_path / "out")]
    command = [sys.executable, "-m", "capsmith", "diversity", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "nowhere.jsonl" in done.stderr
    assert not (tmp_path / "out").exists()
