"""`capsmith quickstart`: the three jobs on the built-in picture set, with the code that users run, offline."""

import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from imagetext.shown import say

if TYPE_CHECKING:
    from imagetext.sample import Record

MODEL, NAME = "coca_tiny", "coca_tiny_curated"
BEFORE, AFTER, HUMAN = f"syn_text_{MODEL}", f"syn_text_{NAME}", "captions"
SHOWN_PICTURES = 5  # whose captions are printed
CAPTIONER, PRETRAINED, RECORDS, REPORT = "captioner", "records_pretrained", "records", "report"  # folders
LEARNING_RATE, BATCH_SIZE = 1e-3, 32
VALIDATIONS = 4  # in fine-tuning, beside the one at its start
NEXT = (  # the same three jobs on the reader's own pictures
    "capsmith finetune --model coca_ViT-B-32 --pretrained laion2b_s13b_b90k --input captions.csv "
    "--samples-seen 20k --output runs/captioner",
    "capsmith generate --model runs/captioner --input pictures/ --output runs/captioned",
    "capsmith diversity --input 'runs/captioned/*.tar' --output runs/report",
)


class QuickstartConfig(BaseModel):
    """Draw pictures, fine-tune a tiny captioner, caption held-out pictures before and after, score the captions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: Path = Field(description="folder for the captioner, the records, the report and the gallery")
    samples_seen: int = Field(90_000, gt=0, description="captions seen in fine-tuning")
    train_pictures: int = Field(12_000, gt=0, description="curated pictures to fine-tune on")
    held_out_pictures: int = Field(100, ge=SHOWN_PICTURES, description="pictures to caption, none of them seen before")
    device: str | None = Field(None, description="cpu, cuda, … (default: the best device of this machine)")
    seed: int = Field(0, ge=0, description="seed of the pictures, the fine-tuning and the captions")
    overwrite: bool = Field(False, description="start anew in a folder that holds an earlier quickstart")


def run(config: QuickstartConfig) -> int:
    """Run the steps, each of which resumes by itself, and print where everything is.

    Returns 0, or the exit code of the first step that fails.
    Raises: ValueError where the folder holds something other than a quickstart, or another process writes there.
    """
    from imagetext.lock import LOCK, FolderLock

    names = {path.name for path in config.output.iterdir()} if config.output.exists() else set()
    if names - {LOCK, CAPTIONER} and not (config.output / CAPTIONER / "finetune.json").exists():
        raise ValueError(
            f"--output {config.output}: the folder is not empty, and holds no quickstart; give another folder"
        )
    with FolderLock(config.output):
        return _run(config)


def _run(config: QuickstartConfig) -> int:
    steps, times = _steps(config), []
    for number, (title, command) in enumerate(steps.items(), 1):
        say("", f"[{number}/{len(steps)}] {title}")
        start = time.monotonic()
        if code := command():
            return code
        times.append(f"  {_minutes(time.monotonic() - start)}  {title}")
    _summarise(config.output)
    say("", "How long each part took, in minutes and seconds:", *times)
    say("", "Next, with pictures of your own, of which captions.csv has a few hundred captions:", *NEXT)
    return 0


def _steps(config: QuickstartConfig) -> dict[str, Callable[[], int]]:
    """The commands in their order, by what they do."""
    from diversity.config import DiversityConfig
    from diversity.run import run as score
    from finetune.captioner.config import FinetuneConfig
    from finetune.captioner.run import run as finetune
    from generate.captions.config import GenerateConfig
    from generate.captions.run import run as generate

    captioner, pretrained_records, records = (config.output / name for name in (CAPTIONER, PRETRAINED, RECORDS))
    train = f"scenes:train,n={config.train_pictures},level=2,seed={config.seed}"
    held_out = f"scenes:test,n={config.held_out_pictures},level=2,seed={config.seed}"
    common: dict[str, Any] = {"seed": config.seed, "overwrite": config.overwrite, "device": config.device}
    # What the captioner says is shown as it is, not only what a set should keep of it.
    # Worker processes would take longer to start than these few pictures take to be read.
    as_it_is: dict[str, Any] = {"redraws": 0, "on_degenerate": "keep", "num_workers": 0}
    finetune_config = FinetuneConfig(
        input=[train],
        model=MODEL,
        name=NAME,
        output=captioner,
        samples_seen=config.samples_seen,
        batch_size=BATCH_SIZE,
        validate_every=math.ceil(config.samples_seen / VALIDATIONS),
        learning_rate=LEARNING_RATE,
        hold_out=60,
        **common,
    )
    before_config = GenerateConfig(input=[held_out], model=MODEL, output=str(pretrained_records), **as_it_is, **common)
    after_config = GenerateConfig(
        input=[str(pretrained_records / "*.tar")],
        model=str(captioner),
        output=str(records),
        **as_it_is,
        **common,
    )
    score_config = DiversityConfig(
        input=[str(records / "*.tar")], column=[BEFORE, AFTER], output=config.output / REPORT, device=config.device
    )
    return {
        f"fine-tune {MODEL} on curated captions of {config.train_pictures:,} pictures": partial(
            finetune, finetune_config
        ),
        f"caption {config.held_out_pictures:,} held-out pictures with {MODEL} as it was": partial(
            generate, before_config
        ),
        f"caption them with {NAME}, into records": partial(generate, after_config),
        "score the captions, before and after, beside the human ones": partial(score, score_config),
    }


def _summarise(output: Path) -> None:
    from generate.sets.gallery import Card, Line, write_gallery
    from imagetext.sources import read_records

    records = list(read_records(str(output / RECORDS / "*.tar")))
    columns = {"human": HUMAN, "before": BEFORE, "after": AFTER}
    cards = [
        Card(record.key, record.image, {name: list(map(Line, texts)) for name, texts in _captions(record).items()})
        for record in records
    ]
    write_gallery(
        output / "gallery.html",
        cards,
        title="Before and after fine-tuning",
        subtitle=f"{len(records)} held-out pictures of the built-in set",
    )
    say("", "Held-out pictures, a caption each before and after fine-tuning:")
    for record in records[:SHOWN_PICTURES]:
        say(f"  {record.key}")
        for name, captions in _captions(record).items():
            say(f"    {name:7}{captions[0]}")
    scores = json.loads((output / REPORT / "report.json").read_text(encoding="utf-8"))["columns"]
    say("", "Facts that captions state, and are true; main facts of a picture that some caption states:")
    for name, column in columns.items():
        say(f"    {name:7}{_facts_line(scores[column]['facts'])}")
    say(
        "",
        f"Captioner   {output / CAPTIONER}",
        f"Records     {output / RECORDS}",
        f"Report      {output / REPORT / 'report.html'}",
        f"Gallery     {output / 'gallery.html'}",
    )


def _captions(record: "Record") -> dict[str, tuple[str, ...]]:
    return {"human": record.captions, "before": record.syn_text[BEFORE], "after": record.syn_text[AFTER]}


def _facts_line(facts: dict[str, Any]) -> str:
    kinds = ", ".join(
        f"{kind} {_percent(facts['kinds'][kind]['precision'])}"
        for kind in ("colour", "shape", "count", "relation")
        if kind in facts["kinds"]
    )
    return f"true {_percent(facts['precision'])} ({kinds}); found {_percent(facts['recall'])}"


def _minutes(seconds: float) -> str:
    return "{:3d}:{:02d}".format(*divmod(round(seconds), 60))


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"
