"""Whole sets captioned by servers: by a fake one, and by transformers' own with a tiny model."""

import io
import os
import socket
import subprocess
import sys
import time
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import capsmith
from captioners.base import Request, SamplingConfig
from captioners.load import load_captioner
from captioners.server.answers import choices_of
from captioners.server.requests import encode_picture
from generate.captions.config import GenerateConfig
from generate.captions.gate import Gate
from generate.captions.run import run
from generate.captions.settled_column import SettledColumn
from generate.captions.stages import caption_samples
from imagetext.sample import Record, decode_image
from imagetext.sources import read_records

from .fake_server import TWO, texts
from .vlm.models import ENDS, make_model_and_processor, photos, scramble

# records


def samples(count, refused=()):
    """Samples of one colour each; the server refuses white ones."""
    records = []
    for number in range(count):
        encoded = io.BytesIO()
        Image.new("RGB", (20, 10), "white" if number in refused else (number, 40, 90)).save(encoded, "PNG")
        records.append(Record(f"s/{number}", encoded.getvalue()))
    return records


def refuse_white(request, picture):
    if picture and np.asarray(Image.open(io.BytesIO(picture))).min() > 250:
        return 400, {"detail": "too white"}


def test_a_refused_picture_is_a_record_with_the_reason(server):
    captioner = load_captioner(server.model)
    column = SettledColumn("syn_text_fake", captioner, TWO, Gate(redraws=1))
    server.spoil = refuse_white
    results = list(caption_samples(samples(5, refused=[1, 4]), [column], num_workers=2))
    assert [record.key for record in results] == [f"s/{number}" for number in range(5)]
    reason = "syn_text_fake: the server refuses the picture: 400 too white"
    assert [record.error for record in results] == ["", reason, "", "", reason]


@pytest.mark.parametrize("columns", [1, 2])
def test_a_run_of_words_alone_sends_no_picture(server, tmp_path, columns):
    """Neither to find out what the server supports: it may refuse pictures in any way, or may not see any."""
    server.spoil = lambda request, picture: (403, {}) if picture and picture.startswith(b"\xff\xd8") else None
    entries = [{"column": f"syn_text_{name}", "seed": seed} for seed, name in enumerate("ab"[:columns])]
    options = {"model": server.model, "text_only": True, "instruction": "{{ text }}", "columns": entries}
    assert run(GenerateConfig(input=["scenes:train,n=3"], output=str(tmp_path / "out"), **options)) == 0
    assert {request["messages"][0]["content"].__class__ for request, _ in server.requests} == {str}
    entries = [{"column": "syn_text_a"}, {"column": "syn_text_b", "text_only": False}]
    with pytest.raises(ValueError, match="403"):
        run(GenerateConfig(input=["scenes:train,n=3"], output=str(tmp_path / "2"), **options | {"columns": entries}))


def test_a_picture_that_one_of_two_servers_refuses_keeps_the_others_captions(serve):
    strict, lax = serve(), serve()
    strict.spoil = refuse_white
    columns = [
        SettledColumn(f"syn_text_{name}", load_captioner(server.model), TWO, Gate(redraws=1, on_degenerate="keep"))
        for name, server in (("strict", strict), ("lax", lax))
    ]
    results = list(caption_samples(samples(3, refused=[1]), columns))
    assert [sorted(record.syn_text) for record in results] == [
        ["syn_text_lax", "syn_text_strict"],
        ["syn_text_lax"],
        ["syn_text_lax", "syn_text_strict"],
    ]
    assert not any(record.error for record in results)


@pytest.mark.parametrize("format", ["webdataset", "jsonl", "parquet"])
def test_records_without_log_probabilities_are_read_as_they_were_written(serve, tmp_path, format):
    server = serve(takes_logprobs=False)
    assert (
        run(
            GenerateConfig(
                input=["scenes:val,n=3"],
                model=server.model,
                output=tmp_path / "out",
                format=format,
                num_captions=2,
                on_degenerate="keep",
                num_workers=0,
            )
        )
        == 0
    )
    records = list(
        read_records(
            str(
                next(
                    path
                    for path in (tmp_path / "out").iterdir()
                    if path.name.startswith("scenes") and path.suffix in (".tar", ".jsonl", ".parquet")
                )
            )
        )
    )
    scores = [record.scores["syn_text_fake_vlm"] for record in records]
    assert [score["logprob"] for score in scores] == [[None, None]] * 3 and all(
        len(score["truncated"]) == 2 for score in scores
    )
    assert capsmith.main(["verify", str(tmp_path / "out"), "--most-repeated", "1"]) == 0


def test_a_server_that_dies_and_comes_back_elsewhere_leaves_the_same_bytes(
    serve, tmp_path, at_once, monkeypatch, caplog
):
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret-key")

    def generate(server, output):
        return capsmith.main(
            [
                "generate",
                "--input",
                "scenes:val,n=4",
                "--input",
                "scenes:train,n=6",
                "--model",
                server.model,
                "--output",
                str(tmp_path / output),
                "--num-captions",
                "3",
                "--batch-size",
                "3",
            ]
        )

    dying, other = serve(), serve()
    dying.spoil = lambda request, picture: (
        "drop" if list((tmp_path / "out").glob("*.tar")) else None
    )  # after the first shard
    assert generate(dying, "out") == 1 and "Disconnected" in caplog.text
    done = {path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".tar"}
    assert len(done) == 1
    requests_before = len(other.requests)
    assert generate(other, "out") == 0 and generate(serve(), "undisturbed") == 0
    assert len(other.requests) - requests_before >= 6  # the shard that was done is not asked for again
    ours, theirs = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("out", "undisturbed")
    )
    assert ours == theirs and sum(name.endswith(".tar") for name in ours) == 2
    written = b"".join(ours.values())
    assert b"127.0.0.1" not in written and b"secret" not in written and b"fake_vlm" in written
    assert dying.keys == other.keys == {"Bearer a-secret-key"}


# transformers' server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny LLaVA whose captions differ between pictures; transformers' server samples only if do_sample is set."""
    folder = tmp_path_factory.mktemp("served") / "Tiny LLaVA"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = make_model_and_processor("llava")
    scramble(model)
    model.generation_config.update(eos_token_id=ENDS, do_sample=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(folder, tmp_path_factory):
    """The tiny LLaVA, served by transformers."""
    pytest.importorskip("fastapi", reason="transformers serve needs transformers[serving]")
    pytest.importorskip("uvicorn", reason="transformers serve needs transformers[serving]")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("hub")
    (home / "hub").mkdir()
    with open(home / "log", "w") as log:
        command = [
            sys.executable,
            "-c",
            "from transformers.cli.transformers import main; main()",
            "serve",
            str(folder),
        ]
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            stdout=log,
            stderr=log,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "OMP_NUM_THREADS": "1"},
        )
    try:
        for _ in range(600):
            try:
                urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except OSError:
                assert process.poll() is None, (home / "log").read_text()
                time.sleep(0.2)
        yield f"openai:http://127.0.0.1:{port}#{folder}"
    finally:
        process.terminate()
        process.wait(30)


def in_a_column(reply):
    """The caption in a reply; the scrambled model also writes control characters."""
    return choices_of({"choices": [{"message": {"content": reply}}]})[0].text


def test_a_real_server_sees_the_picture_and_the_prompt(served, folder):
    """Its greedy captions equal those of the same model in this process, for the same JPEGs."""
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    encoded, expected = (
        [
            Request(str(number), encode_picture(photo))
            for number, photo in enumerate(photos(load_captioner(str(folder)), 6))
        ],
        {},
    )
    for key, jpeg, _ in encoded:
        content = [
            {"type": "image", "image": decode_image(jpeg.numpy().tobytes())},
            {"type": "text", "text": "Is it a dog?"},
        ]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_tensors="pt",
            return_dict=True,
        )
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=14)[0, inputs["input_ids"].shape[1] :]
        expected[key] = [in_a_column(processor.decode(tokens, skip_special_tokens=True))]
    captioner, sampling = (
        load_captioner(served),
        SamplingConfig(strategy="greedy", max_length=16),
    )

    def answers_to(instruction):
        return texts(captioner.caption([request._replace(instruction=instruction) for request in encoded], sampling))

    assert answers_to("Is it a dog?") == expected and len(set(map(str, expected.values()))) > 3
    assert answers_to("A cat?") != expected


def test_whole_sets_from_a_real_server(served, tmp_path, capsys):
    def generate(output, *more):  # one at a time: the server has one stream of draws, which each request seeds
        return capsmith.main(
            [
                "generate",
                "--input",
                "scenes:val,n=8",
                "--model",
                served,
                "--output",
                str(tmp_path / output),
                "--num-captions",
                "3",
                "--max-length",
                "14",
                "--on-degenerate",
                "keep",
                "--column",
                "syn_text_served",
                "--batch-size",
                "1",
                *more,
            ]
        )

    assert generate("one") == 0 and generate("two") == 0
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert first == second
    assert capsmith.main(["verify", str(tmp_path / "one"), "--decode", "--most-repeated", "1"]) == 0
    assert "8 records in 1 shard; all as the markers say" in capsys.readouterr().out
    records = list(read_records(str(tmp_path / "one" / "*.tar")))
    captions = [record.syn_text["syn_text_served"] for record in records]
    assert (
        len(captions) == 8 and len({text for texts in captions for text in texts}) > 16
    )  # captions of a picture differ, too
    scores = [record.scores["syn_text_served"] for record in records]
    assert {value for score in scores for value in score["logprob"]} == {None}
    assert {value for score in scores for value in score["truncated"]} == {True, False}
    assert (
        generate("three", "--top-k", "5") == 2
        and "Unexpected fields in the request: {'top_k'}" in capsys.readouterr().err
    )
