"""Each is what it stands for. Nothing runs this file: mypy reads it, for test_protocols.py."""

import campaign
import conftest

from captioners.base import Captioner, TrainableCaptioner
from captioners.coca import CoCaCaptioner
from captioners.endpoint import EndpointCaptioner
from captioners.vlm import VLMCaptioner
from finetune.forward import CoCaForward, VLMForward
from finetune.student import StudentForward
from finetune.trainer import Forward
from imagetext.formats import JsonlShard, ParquetShard, TarShard, Writer
from tests.finetune.test_validation import Scripted


def captioners(endpoint: EndpointCaptioner, fake: conftest.FakeCaptioner, disturbed: campaign.Captioner, scripted: Scripted) -> None:
    captioner: Captioner = endpoint
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


def writers(tar: TarShard, jsonl: JsonlShard, parquet: ParquetShard) -> None:
    writer: Writer = tar
    writer = jsonl
    writer = parquet
