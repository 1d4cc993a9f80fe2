"""Run as a script: damaged YAML as `--config` of every command; see test_fuzz_configs.py."""

import random
from pathlib import Path

import capsmith
from diversity.config import DiversityConfig
from finetune.captioner.config import FinetuneConfig
from finetune.captioner.recipes import FOLDER
from finetune.student.config import StudentConfig
from finetune.zero_shot.config import ZeroShotConfig
from generate.captions.config import RECIPES, GenerateConfig
from generate.reinforce.config import ReinforceConfig
from generate.select.config import SelectConfig
from tests.fuzzing import take

COMMANDS = {
    "diversity": DiversityConfig,
    "finetune": FinetuneConfig,
    "generate": GenerateConfig,
    "reinforce": ReinforceConfig,
    "select": SelectConfig,
    "train-student": StudentConfig,
    "zero-shot": ZeroShotConfig,
}
TEXTS = [path.read_text() for path in (*sorted(FOLDER.glob("*.yaml")), *RECIPES.values())]
VALUES = [
    "null",
    "~",
    "''",
    "[]",
    "{}",
    "-1",
    ".nan",
    ".inf",
    "1e999",
    "9" * 5000,
    "1" + ":59" * 200_000,
    "0x" + "f" * 9000,
    "2001-99-99",
    "!!binary QUJD",
    "!!set {a, b}",
    "!!python/object/apply:os.system ['false']",
    "\x1b[2J",
    "'\\ud83d'",
    '"\\ud83d"',
    '"\\x00"',
    "[" * 900 + "]" * 900,
    "{a: " * 300 + "}" * 300,
    "&a [*a]",
    "*nothing",
    "|\n  a\n b",
    "x" * 100_000,
    "[" + "a," * 200_000 + "]",
    "&b " + "y" * 50_000 + "\nother: [" + "*b," * 5000 + "]",
    "\n  <<: {x: 1}",
    "openai:http://host#m",
    "../../etc/passwd",
]


def text_of(rng: random.Random) -> bytes:
    """A configuration with several kinds of damage, in which most lines are valid."""
    fields = list(COMMANDS[rng.choice(list(COMMANDS))].model_fields)
    lines = [*rng.choice(TEXTS).splitlines(), *(f"{rng.choice(fields)}: {rng.choice(VALUES)}" for _ in range(3))]
    for _ in range(rng.randrange(3)):
        index = rng.randrange(len(lines))
        lines[index : index + 1] = rng.choice(
            [[], [lines[index]] * 2, [lines[index] + lines[-1]], [" " + lines[index]], [rng.choice(VALUES)]]
        )
    if not rng.randrange(8):  # each mapping contains the one before it twice
        lines += [
            "m0: &m0 {x: 1}",
            *(f"m{index + 1}: &m{index + 1} {{<<: [*m{index}, *m{index}]}}" for index in range(60)),
        ]
    data = bytearray("\n".join(lines).encode("utf-8", "replace"))
    for _ in range(rng.choice([0, 0, 1, 20])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(rng.choice([data] * 6 + [data[: rng.randrange(len(data))], data.decode("latin-1").encode("utf-16")]))


def check(number: int, folder: Path) -> None:
    """Check that the configuration is read or its problems are reported, in a text of limited length."""
    rng = random.Random(number)
    path = folder / "c.yaml"
    path.write_bytes(text_of(rng))
    command = rng.choice(list(COMMANDS))
    try:
        capsmith.parse(command, COMMANDS[command], ["--config", str(path)])
    except ValueError as error:
        assert str(error).startswith("the configuration has problems:\n") and len(str(error)) < 10 << 20


if __name__ == "__main__":
    take(check)
