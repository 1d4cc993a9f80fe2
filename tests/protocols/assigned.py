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


def assign(coca: CoCaCaptioner, vlm: VLMCaptioner, endpoint: EndpointCaptioner, fake: conftest.FakeCaptioner,
           disturbed: campaign.Captioner, scripted: Scripted, of_coca: CoCaForward, of_vlm: VLMForward, of_student: StudentForward,
           tar: TarShard, jsonl: JsonlShard, parquet: ParquetShard) -> None:
    captioner: Captioner = endpoint
    captioner = fake
    captioner = disturbed
    captioner = scripted

    trainable: TrainableCaptioner = coca
    trainable = vlm

    forward: Forward = of_coca
    forward = of_vlm
    forward = of_student

    writer: Writer = tar
    writer = jsonl
    writer = parquet
