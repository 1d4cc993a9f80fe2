"""Samples to records: order, look-ahead, what is raised and what becomes a row."""

import multiprocessing
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import generate
from captioners.base import SamplingConfig
from generate.captioning import ColumnClash, caption_samples
from imagetext.sample import Sample

SAMPLING = SamplingConfig(num_captions=2)


def caption(samples, captioner, **options):
    return caption_samples(samples, captioner, "syn_text_fake", SAMPLING, **options)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_order_is_kept_and_no_more_than_two_batches_are_read_ahead(captioner, pictures, workers):
    images = pictures(20)
    read, prepare = [], captioner.preprocess

    def preprocess(image):
        time.sleep(random.random() / 100)
        return prepare(image)
    captioner.preprocess = preprocess
    samples = (read.append(number) or Sample(str(number), image, (), {}, {}) for number, image in enumerate(images))
    for taken, record in enumerate(caption(samples, captioner, num_workers=workers)):
        assert record.sample.key == str(taken)
        # two of a batch are taken at a time, besides two batches, or three pictures that as many workers share
        assert len(read) <= taken + 2 + (2 * 2 if workers < 3 else 2 * 3) + 1
    assert taken == 19


def test_pictures_are_decoded_while_the_captioner_works(captioner, pictures):
    """The first batch's captions wait for a picture of the second to be prepared: without look-ahead they would for ever."""
    third = multiprocessing.Event()
    prepare, whole, count = captioner.preprocess, captioner.caption, iter(range(100))

    def preprocess(image):
        if next(count) == 2:
            third.set()
        return prepare(image)

    def wait_and_caption(images, sampling, **options):
        for found in whole(images, sampling):
            assert third.wait(30)
            yield found
    captioner.preprocess, captioner.caption = preprocess, wait_and_caption
    samples = [Sample(str(number), image, (), {}, {}) for number, image in enumerate(pictures(4))]
    assert [record.sample.key for record in caption(samples, captioner, num_workers=1)] == ["0", "1", "2", "3"]


def test_workers_end_with_their_run_even_if_it_is_killed(pictures, tmp_path):
    """A run that is killed leaves no process behind."""
    script = tmp_path / "run.py"
    script.write_text(f"""
import sys, time
import psutil
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(generate.__file__).parents[1])!r}]
from conftest import FakeCaptioner, jpeg
from captioners.base import SamplingConfig
from generate.captioning import caption_samples
from imagetext.sample import Sample
samples = [Sample(str(i), jpeg(i), (), {{}}, {{}}) for i in range(50)]
for record in caption_samples(samples, FakeCaptioner(), "syn_text_fake", SamplingConfig(), num_workers=2):
    print(*(child.pid for child in psutil.Process().children()), flush=True)
    time.sleep(600)
""")
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    workers = [int(number) for number in process.stdout.readline().split()]
    assert len(workers) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE for worker in workers):
        assert time.monotonic() < deadline, f"{workers} live on"
        time.sleep(0.1)


def test_a_sample_that_is_in_error_already_keeps_its_reason(captioner, pictures):
    [record] = caption([Sample("a", pictures(1)[0], (), {}, {"error": "row 3: two pictures"})], captioner)
    assert (record.error, record.syn_text) == ("row 3: two pictures", {})


def test_an_unreadable_syn_json_is_a_row_with_the_reason(captioner, pictures):
    [record] = caption([Sample("a", pictures(1)[0], (), {"syn.json": b"[1]"}, {})], captioner)
    assert "syn.json" in record.error


def test_earlier_scores_are_kept_beside_the_new_ones(captioner, pictures):
    earlier = {"syn_text_first": {"logprob": [-1.0]}}
    [record] = caption([Sample("a", pictures(1)[0], (), {}, {"caption_scores": earlier, "uid": "u"})], captioner)
    assert record.sample.meta == {"uid": "u", "caption_scores": {
        **earlier, "syn_text_fake": {"logprob": [0, -0.3333], "truncated": [False, True]}}}


def test_a_clash_of_columns_is_raised_and_so_is_what_the_source_raises(captioner, pictures):
    with pytest.raises(ColumnClash, match="a: has the column syn_text_fake already"):
        list(caption([Sample("a", pictures(1)[0], (), {"syn.json": b'{"syn_text_fake": []}'}, {})], captioner))

    def samples():
        yield Sample("a", pictures(1)[0], (), {}, {})
        raise OSError("the store is gone")
    with pytest.raises(OSError, match="the store is gone"):
        list(caption(samples(), captioner))


def test_nothing_to_caption_is_no_batch(captioner):
    assert list(caption([], captioner)) == []
    assert list(caption([Sample("a", None, (), {}, {})], captioner))[0].error == "missing picture"
    assert captioner.batches == []


def test_batches_are_full_whatever_fails_between(captioner, pictures):
    images = [None, *pictures(3), None, None, None, *pictures(2, 3), None]
    samples = [Sample(str(number), image, (), {}, {}) for number, image in enumerate(images)]
    assert [(record.sample.key, bool(record.error)) for record in caption(samples, captioner)] == [
        (str(number), image is None) for number, image in enumerate(images)]
    assert captioner.batches == [2, 2, 1]


@pytest.mark.parametrize("come", [lambda found: found[::-1], lambda found: found[:-1], lambda found: found[1:]])
def test_captions_that_are_missing_or_out_of_order_are_an_error(captioner, pictures, come):
    whole = captioner.caption
    captioner.caption = lambda images, sampling, **options: iter(come(list(whole(images, sampling))))
    samples = [Sample(str(number), image, (), {}, {}) for number, image in enumerate(pictures(3))]
    with pytest.raises(RuntimeError, match="captioner fake"):
        list(caption(samples, captioner))
