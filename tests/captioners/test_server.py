"""Captions from a fake server: details of the protocol."""

import hashlib
import io
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest
import torch
from PIL import Image

import capsmith
from captioners.base import SamplingConfig
from captioners.load import load_captioner
from captioners.server import client, load
from captioners.server.requests import encode_picture, request_seed
from imagetext.sample import decode_image

from .fake_server import TWO, captions, pictures, texts
from .virtual_time import Simulated

# order and bounds


def test_captions_come_in_order_with_a_batch_in_flight_and_pictures_are_taken_as_they_are_needed(server):
    captioner, together, requested = load_captioner(server.model), threading.Barrier(3), []
    captioner.batch_size = 3

    def spoil(request, picture):
        if picture in (b"picture 0", b"picture 1", b"picture 2"):
            together.wait(30)
        time.sleep(picture[-1] % 3 / 100)  # later ones may end before earlier ones

    results = captioner.caption(
        (requested.append(number) or request for number, request in enumerate(pictures(30))), TWO
    )
    server.spoil, server.most_in_flight = spoil, 0
    assert requested == []
    for number, result in enumerate(results):
        assert result.key == f"key/{number}" and len(requested) <= number + 2 * 3 + 1
    assert number == 29 and server.most_in_flight == 3


def test_a_call_may_have_another_batch_size_than_the_captioner(server):
    captioner, server.most_in_flight = load_captioner(server.model), 0
    assert len(list(captioner.caption(pictures(6), TWO, batch_size=1))) == 6
    assert server.most_in_flight == 1 < captioner.batch_size


def test_those_behind_a_slow_picture_go_on(server):
    captioner, third = load_captioner(server.model), threading.Event()
    captioner.batch_size = 2

    def spoil(request, picture):
        if picture == b"picture 2":
            third.set()
        if picture == b"picture 0" and not third.wait(10):
            return 404, {"message": "the third did not come"}

    server.spoil = spoil
    assert [result.key for result in captioner.caption(pictures(4), TWO)] == [f"key/{number}" for number in range(4)]


def test_captions_that_nobody_waits_for_let_the_program_end(server):
    code = (
        "import sys, torch\n"
        "from captioners.base import Request, SamplingConfig\n"
        "from captioners.server.captioner import load_server\n"
        "captioner, one = load_server(sys.argv[1]), torch.zeros(1, dtype=torch.uint8)\n"
        "requests = (Request(str(number), one) for number in range(300))\n"
        "found = captioner.caption(requests, SamplingConfig(num_captions=1))\n"
        "next(found)\n"
    )
    subprocess.run([sys.executable, "-c", code, server.model], timeout=60, check=True)


def test_captions_that_nobody_waits_for_leave_no_thread(server):
    before = threading.active_count()
    captioner = load_captioner(server.model)
    results = captioner.caption(pictures(20), TWO)
    next(results)
    assert "run_forever" in "".join(thread.name for thread in threading.enumerate())
    results.close()
    assert not [thread for thread in threading.enumerate() if "run_forever" in thread.name]
    assert threading.active_count() <= before + 20  # the fake's own
    assert list(captioner.caption([], TWO)) == []


# seeds and requests


def test_seeds_are_of_31_bits_and_depend_on_run_key_and_number():
    seeds = [
        request_seed(seed, key, index)
        for seed in (0, 2**64 - 1)
        for key in ("a", "ü", "\udc80")
        for index in range(2000)
    ]
    assert len(set(seeds)) == len(seeds) and 0 <= min(seeds) and 2**30 < max(seeds) < 2**31
    assert request_seed(0, "a", 0) == 1172529220  # on every machine, for ever
    assert len({request_seed(0, "a", 0, column=column) for column in ("", "syn_text_a", "syn_text_b")}) == 3


def test_a_picture_is_asked_for_alike_in_any_order_and_batch(server):
    first_run = texts(captions(server.model, batch_size=1))
    again = texts(captions(server.model, requests=pictures(6)[:1:-1], batch_size=4))
    assert again == {key: first_run[key] for key in again} and len(again) == 4
    for number in range(2, 6):
        earlier, later = server.seen(f"picture {number}".encode())
        assert earlier == later and earlier["seed"] == request_seed(3, f"key/{number}", 0)
    other = texts(captions(server.model, column="syn_text_x"))
    assert (
        server.seen(b"picture 0")[-1]["seed"] == request_seed(3, "key/0", 0, column="syn_text_x")
        and other != first_run
    )
    redrawn = texts(captions(server.model, first_index=2))
    assert not {text for captions_of_picture in redrawn.values() for text in captions_of_picture} & {
        text for captions_of_picture in first_run.values() for text in captions_of_picture
    }
    assert server.seen(b"picture 0")[-1]["seed"] == request_seed(3, "key/0", 2)


@pytest.mark.parametrize(
    "sampling, sent",
    [
        (
            {"num_captions": 3},
            {"n": 3, "temperature": 1.0, "top_p": 0.9, "max_tokens": 255, "seed": request_seed(0, "key/0", 0)},
        ),
        (
            {
                "num_captions": 1,
                "temperature": 0.5,
                "top_p": 0.4,
                "top_k": 7,
                "repetition_penalty": 1.2,
                "min_length": 9,
                "max_length": 22,
            },
            {
                "temperature": 0.5,
                "top_p": 0.4,
                "top_k": 7,
                "repetition_penalty": 1.2,
                "min_tokens": 8,
                "max_tokens": 20,
                "seed": request_seed(0, "key/0", 0),
            },
        ),
        ({"strategy": "greedy", "max_length": 32}, {"temperature": 0.0, "max_tokens": 30}),
    ],
)
def test_what_a_request_holds(server, sampling, sent):
    captions(server.model, SamplingConfig(**sampling), requests=[pictures(1)[0]._replace(instruction="What is it?")])
    (request,) = server.seen(b"picture 0")
    content = [
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,cGljdHVyZSAw"}},
        {"type": "text", "text": "What is it?"},
    ]
    assert request == {
        "model": "org/Fake-VLM",
        "messages": [{"role": "user", "content": content}],
        "logprobs": True,
        **sent,
    }


def test_without_a_prompt_the_model_is_asked_to_describe_the_picture(server):
    captions(server.model, requests=pictures(1))
    assert (
        server.seen(b"picture 0")[0]["messages"][0]["content"][1]["text"] == "Describe this picture in one sentence."
    )


@pytest.mark.parametrize(
    "lacks", [{"takes_n": False}, {"takes_logprobs": False}, {"takes_n": False, "takes_logprobs": False}]
)
@pytest.mark.parametrize("refuses", [False, True])
def test_servers_without_several_captions_or_log_probabilities(serve, lacks, refuses):
    """Such servers ignore or refuse unknown fields; each server is probed once."""
    server, full = serve(**lacks), serve()
    if refuses:

        def spoil(request, picture):
            for name in ("n", "logprobs"):
                if request and name in request and not getattr(server, f"takes_{name}"):
                    return 422, {"detail": f"Unexpected fields in the request: {name}"}

        server.spoil = spoil
    captioner = load_captioner(server.model)
    results = [result for _ in range(3) for result in captioner.caption(pictures(2), TWO)]
    blanks = [picture for _, picture in server.requests if not picture.startswith(b"picture")]
    assert 1 <= len(blanks) <= 4 and len(set(blanks)) == 1
    sent_requests = server.seen(b"picture 1")
    if server.takes_n:
        assert texts(results) == texts(captions(full.model, requests=pictures(2))) and len(sent_requests) == 3
    else:
        assert [request["seed"] for request in sent_requests] == [
            request_seed(3, "key/1", index) for index in (0, 1)
        ] * 3
        assert all("n" not in request for request in sent_requests) and len(set(texts(results)["key/1"])) == 2
    logprobs = [caption.logprob for result in results for caption in result.captions]
    expected = [
        -sum(map(len, caption.text.removesuffix(".").split())) / 7 for result in results for caption in result.captions
    ]
    assert logprobs == (pytest.approx(expected) if server.takes_logprobs else [None] * 12)


def test_captions_of_a_request_stand_as_they_are_numbered(server):
    results = texts(captions(server.model, SamplingConfig(num_captions=9)))
    for number in range(6):
        picture = f"picture {number}".encode()
        choices = {
            choice["index"]: choice["message"]["content"].strip()
            for choice in server.complete(server.seen(picture)[0], picture)[1]["choices"]
        }
        assert results[f"key/{number}"] == [choices[index] for index in range(9)]


def test_a_caption_that_the_limit_ended_is_truncated(server):
    results = [
        caption.truncated for result in captions(server.model, requests=pictures(30)) for caption in result.captions
    ]
    ends = Counter(
        choice["finish_reason"]
        for number in range(30)
        for choice in server.complete(server.seen(f"picture {number}".encode())[0], f"picture {number}".encode())[1][
            "choices"
        ]
    )
    assert 0 < results.count(True) == ends["length"] < 60


# faults


@pytest.mark.parametrize("fault", [429, 500, 503, 408, "drop", "hang"])
def test_a_fault_that_passes_changes_nothing(server, at_once, monkeypatch, fault):
    monkeypatch.setattr(load, "TIMEOUT", 0.5)
    undisturbed, tries = captions(server.model), Counter()

    def spoil(request, picture):
        if picture and picture.startswith(b"picture"):
            tries[picture] += 1
            if fault == "hang" and picture == b"picture 2" and tries[picture] < 2:
                time.sleep(1)
            elif fault != "hang" and tries[picture] <= int(picture[-1:]):  # the last five times
                return fault if fault == "drop" else (fault, {"error": {"message": "later"}})

    server.spoil = spoil
    assert captions(server.model) == undisturbed
    assert sum(tries.values()) == (7 if fault == "hang" else 6 + 15)


class Down(Simulated):
    """Answers with status 503, or with the first of `answers`."""

    def __init__(self, monkeypatch):
        super().__init__(monkeypatch)
        self.down, self.answers = False, []

    async def serve(self, request):
        if self.answers:
            return self.answers.pop()
        return (503, {}, "no workers") if self.down else self.captions(request)

    @property
    def waits(self):
        return [later - earlier for earlier, later in zip(self.times, self.times[1:])]


def test_a_server_that_is_down_is_asked_again_after_longer_and_longer_waits(monkeypatch, caplog):
    server, captioner = Down(monkeypatch), load_captioner("openai:http://sim:1#m")
    captioner.caption([], TWO)
    server.down, server.times = True, []
    with pytest.raises(ConnectionError, match="http://sim:1/v1: 503 no workers"):
        list(captioner.caption(pictures(1), TWO))
    longest = [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert len(server.waits) == 8 and all(most / 2 <= wait <= most + 1e-6 for wait, most in zip(server.waits, longest))
    assert len({wait / most for wait, most in zip(server.waits, longest)}) == 8  # with jitter
    assert "http://sim:1/v1: 503 no workers; asked again in " in caplog.text  # what is waited for


@pytest.mark.parametrize(
    "header, least",
    [
        ("7", 7),
        ("0.5", 0.5),
        ("in five minutes", 200),
        ("86400", 600),
        ("soon", 0),
        ("-5", 0),
        ("nan", 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
    ],
)
def test_a_server_that_names_a_time_is_left_alone_until_then(monkeypatch, header, least):
    if header == "in five minutes":
        header = format_datetime(datetime.now(UTC) + timedelta(seconds=300), usegmt=True)
    server, captioner = Down(monkeypatch), load_captioner("openai:http://sim:1#m")
    captioner.caption([], TWO)
    server.answers, server.times = [(429, {"Retry-After": header}, {"error": "too many"})], []
    assert len(list(captioner.caption(pictures(1), TWO))) == 1
    (wait,) = server.waits
    assert least + 0.25 <= wait <= least + 0.5 + (100 if least == 200 else 0) + 1e-6


def test_a_picture_that_is_refused_is_that_pictures_fault(server, at_once):
    def spoil(request, picture):
        if picture in (b"picture 1", b"picture 3"):
            return (
                (400, {"error": {"message": f"cannot\nidentify {'x' * 500}"}})
                if picture == b"picture 1"
                else (500, b"Oops")
            )

    captioner = load_captioner(server.model)
    undisturbed, server.spoil = texts(captioner.caption(pictures(5), TWO)), spoil
    results = list(captioner.caption(pictures(5), TWO))
    assert [bool(result.error) for result in results] == [False, True, False, True, False]
    assert texts(results) == undisturbed | {"key/1": [], "key/3": []}
    assert (
        results[1].error.startswith("the server refuses the picture: 400 cannot identify xxx")
        and len(results[1].error) < 300
    )
    assert results[3].error == "the server refuses the picture: 500 Oops"
    assert len(server.seen(b"picture 1")) == 2 and len(server.seen(b"picture 3")) == 1 + 1 + client.RETRIES["broken"]


@pytest.mark.parametrize(
    "answer",
    [
        (400, {"error": "no"}),
        (401, {"detail": "no"}),
        (404, {"message": "no"}),
        (500, b"no"),
        (418, b"no"),
        (200, b"no"),
        (200, {"choices": [{"message": {"content": 3}}]}),
        (200, {"choices": []}),
        (200, {"error": "no"}),
    ],
)
def test_what_is_no_pictures_fault_ends_the_shard(server, at_once, answer):
    captioner = load_captioner(server.model)
    captioner.caption([], TWO)
    server.spoil = lambda request, picture: answer if picture != b"picture 0" else None
    captioner.batch_size = 1
    results = captioner.caption(pictures(4), TWO)
    assert next(results).key == "key/0"
    with pytest.raises(ConnectionError, match=f"127.0.0.1:{server.server_port}/v1: "):
        next(results)
    kind = {500: "broken", 200: "odd"}.get(answer[0], "refused")
    assert len(server.seen(b"picture 1")) == 1 + client.RETRIES[kind]


# the start


@pytest.mark.parametrize(
    "name",
    [
        "openai:",
        "openai:#m",
        "openai:ftp://127.0.0.1#m",
        "openai:http://127.0.0.1:x#m",
        "openai:http://127.0.0.1:99999#m",
        "openai:http://user:pass-word@127.0.0.1#m",
        "openai:http://127.0.0.1?key=pass-word#m",
    ],
)
def test_an_address_that_is_none_is_refused_without_its_secrets(name):
    with pytest.raises(
        ValueError, match="is not openai:http://host:port#model; a key comes from OPENAI_API_KEY"
    ) as raised:
        load_captioner(name)
    assert "pass-word" not in str(raised.value)


def test_what_is_wrong_with_the_server_is_told_before_anything_is_written(
    server, at_once, tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def error_of(model=server.model, *more):
        assert (
            capsmith.main(
                ["generate", "--input", "scenes:val,n=3", "--model", model, "--output", str(tmp_path / "out"), *more]
            )
            == 2
        )
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "'org/none': http" in (message := error_of(server.model.replace("Fake-VLM", "none")))
    assert "404 The model `org/none` does not exist. (the server names the models org/Fake-VLM, org/other)" in message
    assert "names no model after '#'; the server names org/Fake-VLM, org/other" in error_of(
        server.model.partition("#")[0]
    )
    server.spoil = lambda request, picture: (401, {"error": {"message": "Incorrect API key"}})
    assert "asks for a key, and there is none: set OPENAI_API_KEY, or give a --header: 401 Incorrect" in error_of()
    monkeypatch.setenv("OPENAI_API_KEY", "not-the-right-one")
    assert "does not take the key in OPENAI_API_KEY: 401 Incorrect API key" in error_of()
    server.spoil = lambda request, picture: (401, {"error": "no"}) if request else None
    assert "model 'org/Fake-VLM': the server at http" in (message := error_of()) and "401 no" in message
    server.spoil = lambda request, picture: (422, {"detail": "top_k?"}) if request and "top_k" in request else None
    assert "422 top_k?" in error_of(server.model, "--top-k", "3")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert f"no server answers at {address}/v1" in error_of(f"openai:{address}#m")


def test_samplings_that_no_server_has_are_refused_all_at_once(server):
    captioner = load_captioner(server.model)
    sampling = SamplingConfig(strategy="beam", num_captions=2, num_beams=4, no_repeat_ngram_size=3)
    with pytest.raises(ValueError, match="similarity: .*; strategy 'beam', num_beams 4: .*; no_repeat_ngram_size 3: "):
        captioner.caption([], sampling, similarity=True)
    with pytest.raises(ValueError, match="context: cannot be set for a server's model"):
        load_captioner(server.model, context=30)
    assert not server.requests


def test_the_captioner_is_its_models_name_wherever_that_is_served(serve):
    plain, slash, v1 = (load_captioner(serve().model.replace("#", end)) for end in ("#", "/#", "/v1/#"))
    assert plain.name == "fake_vlm" and plain.weights_sha256 == slash.weights_sha256 == v1.weights_sha256
    assert plain.weights_sha256 == hashlib.sha256(b"openai:org/Fake-VLM").hexdigest()
    assert (
        v1.address.base.endswith("/v1") and slash.address.base.endswith("/v1") and slash.address.base.count("/") == 3
    )


# pictures


def test_pictures_are_jpegs_of_bounded_size_close_to_what_they_were():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((400, 300))
    encoded = encode_picture(noise)
    assert encoded.dtype == torch.uint8 and encoded.ndim == 1
    again = decode_image(encoded.numpy().tobytes())
    assert again.size == (400, 300) and np.abs(np.asarray(again, float) - np.asarray(noise, float)).mean() < 2
    for size, expected in (
        ((3000, 2000), (1024, 683)),
        ((100, 5000), (20, 1024)),
        ((5000, 1), (1024, 1)),
        ((900, 9), (900, 9)),
    ):
        big = Image.new("RGB", size)
        assert Image.open(io.BytesIO(encode_picture(big).numpy().tobytes())).size == expected and big.size == size
