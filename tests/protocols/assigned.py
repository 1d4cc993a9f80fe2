"""Assigns every implementation to its protocol. Nothing runs this file; mypy checks it for test_protocols.py."""

from captioners.base import Captioner, TrainableCaptioner
from captioners.coca import captioner as coca
from captioners.coca.captioner import CoCaCaptioner
from captioners.coca.decode import Decoding
from captioners.decoding.continuing import Continuing
from captioners.decoding.rows import Rows
from captioners.decoding.slots import SlotRows
from captioners.lm.captioner import LMCaptioner
from captioners.rules.negatives import NegativeRules
from captioners.server.captioner import ServerCaptioner
from captioners.vlm.captioner import VLMCaptioner
from finetune.captioner.forward import CoCaForward, VLMForward
from finetune.forward import Forward
from finetune.student.model import StudentForward
from imagetext.writers.jsonl import JsonlShard
from imagetext.writers.parquet import ParquetShard
from imagetext.writers.tar import TarShard
from imagetext.writers.writer import Writer
from tests.captioners import test_beam, test_slots
from tests.faults import commands as campaign
from tests.finetune.test_validation import Scripted
from tests.generate import conftest


def captioners(
    server: ServerCaptioner,
    lm: LMCaptioner,
    rules: NegativeRules,
    fake: conftest.FakeCaptioner,
    disturbed: campaign.Captioner,
    scripted: Scripted,
) -> None:
    captioner: Captioner = server
    captioner = lm
    captioner = rules
    captioner = fake
    captioner = disturbed
    captioner = scripted


def trainable_captioners(coca: CoCaCaptioner, vlm: VLMCaptioner) -> None:
    captioner: TrainableCaptioner = coca
    captioner = vlm


def forwards(coca: CoCaForward, vlm: VLMForward, student: StudentForward) -> None:
    forward: Forward = coca
    forward = vlm
    forward = student


def rows(decoding: Decoding, continuing: Continuing, plain: test_beam.Plain) -> None:
    rows: Rows = decoding
    rows = continuing
    rows = plain


def slot_rows(of_coca: coca._SlotRows, fake: test_slots.Rows) -> None:
    rows: SlotRows = of_coca
    rows = fake


def writers(tar: TarShard, jsonl: JsonlShard, parquet: ParquetShard) -> None:
    writer: Writer = tar
    writer = jsonl
    writer = parquet
