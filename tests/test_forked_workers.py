"""Workers are forked however Python starts processes: since 3.14 it does not fork unless it is told."""

import multiprocessing
from contextlib import closing

import pytest
from accelerate import Accelerator

from captioners.load import load_captioner
from finetune.batching import BatchOrder, batches
from finetune.captioner.image_cache import cache_images
from finetune.captioner.pictures import CaptionedPictures
from generate.runs.workers import Workers
from imagetext.sources import read_samples


@pytest.fixture(autouse=True)
def as_python_3_14_starts_processes():
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_those_of_generate():
    with closing(Workers(lambda records: ((record, record) for record in records), lambda sent: -sent, 1)) as workers:
        assert list(workers.prepared([1, 2, 3], 2)) == [(1, -1), (2, -2), (3, -3)]


def test_those_of_finetune(tmp_path):
    pictures = CaptionedPictures(read_samples(["scenes:train,n=4,size=48"]), load_captioner("coca_tiny"), quiet=True)
    with closing(batches(BatchOrder(pictures, 2, 2, seed=0), 1)) as loader:
        assert len(next(loader).images) == 2
    cache_images(pictures, tmp_path, Accelerator(cpu=True), batch_size=2, num_workers=1)
