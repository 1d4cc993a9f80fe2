"""Faulty servers: whose fault an answer is, which answers are kept, and which texts are never shown."""

import sys
import time
from collections import Counter
from itertools import count
from types import SimpleNamespace

import pytest

import capsmith
from captioners.load import load_captioner
from captioners.server import client, journal
from captioners.server.address import read_address
from captioners.server.config import ServerConfig

from .fake_server import TWO, captions, pictures, texts


def result(content="A dog.", **more):
    return {"choices": [{"message": {"content": content}, **more}, {"message": {"content": content}, **more}]}


# a picture's own trouble


@pytest.mark.parametrize(
    "answer, reason, tries",
    [
        ((200, {"choices": []}), "200 0 captions came for 2", 3),
        ((200, {"choices": [{"message": {"content": "A dog."}}]}), "200 1 captions came for 2", 3),
        ((200, {"error": {"message": "flagged", "code": "moderation"}}), "200 flagged", 3),
        ((200, {"error": {"message": "upstream", "code": 403}}), "403 upstream", 1),
        ((200, {"error": {"message": "upstream", "code": 502}}), "502 upstream", 9),
        ((200, b"<html><title>Moment, please</title>"), "200 a web page came: Moment, please", 3),
        ((200, b"[" * 100_000), "200 [[[", 3),
        ((200, b"{}"), "200 {}", 3),
        ((200, result(None, finish_reason="content_filter")), "no text came, finish_reason 'content_filter'", 3),
        (
            (200, result("<think>Hm", finish_reason="length")),
            "no text came, finish_reason 'length'; the model may write thoughts before",
            3,
        ),
        ((200, result([])), "no text came, finish_reason 'none'", 3),
        ((403, {"error": {"message": "flagged", "metadata": {"reasons": ["violence"]}}}), "403 flagged (violence)", 1),
        ((400, {"error": {"code": "content_filter", "message": "filtered"}}), "400 filtered", 1),
        ((404, "no"), "404 no", 1),
        ((413, b"too large"), "413 too large", 1),
        (
            (
                429,
                {"error": {"message": "Request too large for m on tokens per min (TPM): Limit 9", "type": "tokens"}},
            ),
            "429 Request too large for m on tokens per min",
            1,
        ),
        ((502, "a string"), "502 a string", 9),
        ((502, {"error": {"error": [{"error": "deep"}]}}), "502 deep", 9),
        ((308, b"", {"Location": "https://other.example/v1"}), "308 http://127.0.0.1", 1),
    ],
)
def test_a_pictures_own_trouble_is_its_rows(server, at_once, answer, reason, tries):
    captioner = load_captioner(server.model)
    undisturbed = texts(captioner.caption(pictures(4), TWO))
    server.spoil, server.requests = lambda request, picture: answer if picture == b"picture 2" else None, []
    results = list(captioner.caption(pictures(4), TWO))
    assert texts(results) == undisturbed | {"key/2": []}
    assert results[2].error.startswith(f"the server refuses the picture: {reason}") and len(results[2].error) < 400
    assert len(server.seen(b"picture 2")) == tries
    assert len(server.requests) == 3 + tries + 1  # a blank picture was captioned


def test_what_a_blank_picture_fails_at_ends_the_shard_and_is_asked_once(server, at_once):
    captioner = load_captioner(server.model)
    captioner.caption([], TWO)
    server.spoil, server.requests = lambda request, picture: (401, {"error": "expired"}) if request else None, []
    with pytest.raises(ConnectionError, match="401 expired; a blank picture gets no caption either"):
        list(captioner.caption(pictures(30), TWO, batch_size=30))
    assert len([picture for _, picture in server.requests if not picture.startswith(b"picture")]) == 1


def test_an_account_without_money_is_not_waited_for(server):
    captioner = load_captioner(server.model)
    captioner.caption([], TWO)
    server.spoil = lambda request, picture: (429, {"error": {"message": "pay", "code": "insufficient_quota"}})
    with pytest.raises(ConnectionError, match="429 pay"):
        list(captioner.caption(pictures(1), TWO))
    assert len(server.seen(b"picture 0")) == 1


def test_one_caption_without_text_is_left_to_the_gate(server):
    answer = result()
    answer["choices"][1] = {"message": {"content": None}, "finish_reason": "content_filter"}
    server.spoil = lambda request, picture: (200, answer) if picture == b"picture 0" else None
    (result_of_one,) = captions(server.model, requests=pictures(1))
    assert [caption.text for caption in result_of_one.captions] == ["A dog.", ""] and not result_of_one.error


def test_a_lone_surrogate_spoils_nothing(server):
    body = b'{"choices": [{"message": {"content": "A \\ud83d dog."}}, {"message": {"content": "A cat \\udc36."}}]}'
    server.spoil = lambda request, picture: (200, body) if picture == b"picture 0" else None
    assert texts(captions(server.model, requests=pictures(1))) == {"key/0": ["A dog.", "A cat ."]}


def test_answers_are_bounded(server, at_once, monkeypatch):
    monkeypatch.setattr(client, "LONGEST_ANSWER", 1 << 20)
    sent = []
    captioner = load_captioner(server.model)
    captioner.caption([], TWO)
    write = server.RequestHandlerClass.answer

    def answer(handler, status, body, headers=()):
        if body != "endless":
            return write(handler, status, body, headers)
        handler.send_response(status)
        handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        try:
            while True:
                sent.append(handler.wfile.write(b"x" * (1 << 16)))
        except OSError:
            pass

    monkeypatch.setattr(server.RequestHandlerClass, "answer", answer)
    server.spoil = lambda request, picture: (200, "endless") if picture == b"picture 1" else None
    results = list(captioner.caption(pictures(3), TWO))
    assert results[1].error == "the server refuses the picture: 200 the answer is longer than 1 MB"
    assert [bool(result.captions) for result in results] == [True, False, True] and sum(sent) < 3 * 16 << 20


# fields


def refusing(server, *names, status=400):
    """The server knows none of the optional fields."""

    def spoil(request, picture):
        if request and (wrong := [name for name in names if name in request]):
            return status, {"error": {"message": f"Unsupported parameter: '{wrong[0]}'", "param": wrong[0]}}

    server.spoil = spoil


def test_fields_are_renamed_or_left_out_and_what_is_lost_is_said(server, caplog):
    refusing(server, "max_tokens", "seed", "logprobs", "top_p", status=422)
    assert len(captions(server.model, requests=pictures(2))) == 2
    request = server.seen(b"picture 0")[0]
    assert request["max_completion_tokens"] == 255 and request["n"] == 2
    assert not {"max_tokens", "seed", "logprobs", "top_p"} & request.keys()
    assert "takes no seed: the same command may draw other captions" in caplog.text and "takes no top_p" in caplog.text


def test_a_server_that_ignores_seeds_is_told_of(serve, caplog):
    server = serve(takes_n=False)
    server.spoil = lambda request, picture: (200, {"choices": [{"message": {"content": "A dog."}}]})
    assert len(captions(server.model, requests=pictures(8))) == 8
    warnings = [record.getMessage() for record in caplog.records if "ignores seeds" in record.getMessage()]
    assert len(warnings) == 1 and "the 2 captions of a picture are all the same, for 4 of 4 pictures" in warnings[0]
    captions(serve().model, requests=pictures(8))
    assert len([record for record in caplog.records if "ignores seeds" in record.getMessage()]) == 1
    captioner = load_captioner(server.model)
    for pair in [*["aa"] * 4, *["ab"] * 5, "aa"]:  # half of all again
        captioner._watch_seeds(TWO, [client.Choice(text, None, "stop") for text in pair])
    assert len([record for record in caplog.records if "ignores seeds" in record.getMessage()]) == 2


@pytest.mark.parametrize("reason", ["length", "MAX_TOKENS"])
def test_a_model_that_only_thinks_is_refused_before_any_picture(server, reason):
    server.spoil = lambda request, picture: (200, result("<think>Hm", finish_reason=reason))
    with pytest.raises(
        ValueError, match=f"no text came for a blank picture, finish_reason '{reason}'; the model may write thoughts"
    ):
        captions(server.model)


def test_other_base_paths_headers_and_more_fields(serve, monkeypatch):
    monkeypatch.setenv("MY_KEY", "my-secret-key")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = serve(base="/api/v3")
    config = ServerConfig(header=["api-key: $MY_KEY"], extra_body={"reasoning_effort": "none", "logprobs": None})
    captioner = load_captioner(server.model.replace("#", "/api/v3/#"), server=config)
    assert len(list(captioner.caption(pictures(1), TWO))) == 1
    assert server.headers["api-key"] == "my-secret-key" and server.keys == {None}
    (request,) = server.seen(b"picture 0")
    assert request["reasoning_effort"] == "none" and "logprobs" not in request


def test_a_proxy_of_the_environment_is_used_but_for_this_machine(monkeypatch):
    for name in (
        "NO_PROXY",
        "no_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)

    def proxy(url):
        return client.proxy_of(read_address(f"openai:{url}#m"))

    assert proxy("https://api.example") is None
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert proxy("https://api.example") == "http://proxy:3128" and proxy("http://api.example") is None
    assert proxy("https://inside.example:8000") is None and proxy("https://localhost:8000") is None


# what never leaves


def test_no_key_goes_to_another_host(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret-key")
    other, server = serve(), serve()
    url = f"http://localhost:{other.server_port}/v1/chat/completions"
    server.spoil = lambda request, picture: (307, b"", {"Location": url})
    with pytest.raises(ValueError, match="redirects requests to http://localhost, to which no key is sent"):
        load_captioner(server.model)
    server.spoil = lambda request, picture: (307, b"", {"Location": url}) if request else None
    with pytest.raises(ValueError, match="redirects requests to"):
        load_captioner(server.model).caption([], TWO)
    assert not other.requests and not other.keys


def test_keys_that_a_server_repeats_are_masked_everywhere(serve, monkeypatch, at_once, tmp_path, capsys, caplog):
    secret = "-".join(["my", "very", "own", "key"])  # so that no line of this file has it
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    server = serve()
    words = f"Authorization: Bearer {secret} is wrong, \\u0073k-abcdefgh too: {secret}"

    def spoil(request, picture):
        if picture in (b"picture 0", b"picture 1"):
            return 400, b'{"error": {"message": "%s"}}' % words.encode()
        if picture == b"picture 2":
            return 200, result(f"A dog on a sign that says {secret}.")

    captioner = load_captioner(server.model)
    captioner.caption([], TWO)
    server.spoil = spoil
    results = list(captioner.caption(pictures(4), TWO))
    assert [bool(result.error) for result in results] == [True, True, False, False] and "says ***." in results[
        2
    ].captions[0].text
    server.spoil = lambda request, picture: (503, words.replace("\\u0073", "s").encode()) if request else None
    with pytest.raises(ConnectionError) as raised:
        list(captioner.caption(pictures(1), TWO))
    server.spoil = lambda request, picture: (401, words.replace("\\u0073", "s").encode())
    assert generate(server, tmp_path / "out") == 2
    all_text = (
        f"{results} {raised.getrepr(chain=True, style='long', showlocals=False)} {caplog.text} {capsys.readouterr()}"
    )
    assert secret not in all_text and "sk-abc" not in all_text and "***" in all_text


def test_where_pictures_go_is_printed_before_they_go(server, tmp_path, monkeypatch):
    order, write = [], sys.stdout.write
    monkeypatch.setattr(sys.stdout, "write", lambda text: (order.append(text), write(text))[1])

    def spoil(request, picture):
        if picture and request.get("seed"):  # of no blank picture
            order.append("picture")

    server.spoil = spoil
    assert capsmith.main(
        [
            "generate",
            "--input",
            "scenes:val,n=2",
            "--model",
            server.model,
            "--output",
            str(tmp_path / "out"),
            "--num-workers",
            "0",
        ]
    ) in (0, 3)
    first = order.index("picture")
    assert any(
        f"pictures are sent to http://127.0.0.1:{server.server_port}/v1, as JPEG" in line for line in order[:first]
    )


# what was answered is kept


def generate(server, output, *more):
    return capsmith.main(
        [
            "generate",
            "--input",
            "scenes:val,n=12",
            "--model",
            server.model,
            "--output",
            str(output),
            "--num-captions",
            "2",
            "--num-workers",
            "0",
            "--on-degenerate",
            "keep",
            "--redraws",
            "0",
            "--batch-size",
            "4",
            *more,
        ]
    )


def test_what_a_shard_was_answered_is_not_asked_for_again(serve, tmp_path, capsys):
    server, undisturbed = serve(), serve()
    assert generate(server, tmp_path / "out", "--max-requests", "8") == 1
    assert "--max-requests 8: all are made; the same command with a higher number continues" in capsys.readouterr().err
    assert len(server.requests) == 8 and (tmp_path / "out" / journal.FOLDER).exists()  # one of a blank picture
    (name,) = (tmp_path / "out" / journal.FOLDER).iterdir()
    name.write_bytes(name.read_bytes()[:-20])  # as a killed process leaves it
    assert generate(server, tmp_path / "out") == 0
    requests_of = Counter(picture for _, picture in server.requests)
    assert (
        sum(requests_of.values()) == 8 + 1 + 12 - 7 + 1 and len(requests_of) == 13
    )  # one more blank one, and the answer that was cut
    assert not (tmp_path / "out" / journal.FOLDER).exists()
    assert generate(undisturbed, tmp_path / "whole") == 0
    ours, theirs = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("out", "whole")
    )
    assert ours == theirs
    assert generate(server, tmp_path / "out", "--overwrite", "--max-requests", "3") == 1
    assert generate(server, tmp_path / "out", "--overwrite") == 0
    assert len(server.requests) == 15 + 3 + 13  # begun anew, nothing is used again


def test_what_is_under_way_when_a_shard_fails_is_kept_too(server, tmp_path):
    captioner = load_captioner(server.model)
    captioner.caption([], TWO)
    captioner.journal = journal.Journal(tmp_path / "x.jsonl")

    def spoil(request, picture):
        if picture in (b"picture 1", b"picture 2", b"picture 3"):
            time.sleep(0.3)
        else:
            return 401, {"error": "expired"}

    server.spoil = spoil
    with pytest.raises(ConnectionError, match="expired"):
        list(captioner.caption(pictures(4), TWO, batch_size=5))
    assert len((tmp_path / "x.jsonl").read_bytes().splitlines()) == 3


def test_without_seeds_each_draw_is_kept_for_itself(serve, tmp_path):
    """All draws of a picture are then the same request; in both tries each draw gets its own answer."""
    server, numbers = serve(takes_n=False), count()

    def spoil(request, picture):
        if request and "seed" in request:
            return 422, {"detail": "Extra inputs are not permitted (body.seed)"}
        return 200, {"choices": [{"message": {"content": f"number {next(numbers)}"}}]}

    server.spoil = spoil
    captioner = load_captioner(server.model)

    def draws():
        captioner.journal = journal.Journal(tmp_path / "x.jsonl")
        return [
            texts(captioner.caption(pictures(2), TWO, column=column, first_index=first))
            for column in ("syn_text_a", "syn_text_b")
            for first in (0, 2)
        ]

    results, num_requests = draws(), len(server.requests)
    assert len({text for run in results for both in run.values() for text in both}) == 16
    assert draws() == results and len(server.requests) == num_requests


def test_a_shard_that_fails_leaves_the_next_one_alone(serve, tmp_path):
    """Two columns of one captioner: requests of the first column that wait do not outlive the shard."""
    server, config, states = serve(), tmp_path / "two.yaml", ["good", "broken"]
    config.write_text(
        'columns: [{instruction: "What is it?", column: syn_text_a}, {instruction: "Who is it?", column: syn_text_b}]'
    )

    def spoil(request, picture):
        """Broken from the second column's first picture on, until a blank one has seen it."""
        if request:
            if states[0] == "good" and len(states) > 1 and "Who" in str(request["messages"]):
                states.pop(0)
            if states[0] == "broken":
                if not request["seed"]:
                    states[0] = "good"
                return 401, {"error": "expired"}

    server.spoil = spoil
    command = (server, tmp_path / "out", "--config", str(config), "--input", "scenes:train,n=5")
    assert generate(*command) == 1 and len(list((tmp_path / "out").glob("*.tar"))) == 1
    assert generate(*command) == 0 and len(list((tmp_path / "out").glob("*.tar"))) == 2


def test_a_journal_is_bounded_and_believes_nothing_that_is_broken(tmp_path, monkeypatch):
    path, choices = (
        tmp_path / "a" / "x.jsonl",
        [journal.Choice("A dog.", -1.5, "stop"), journal.Choice("A cat.", None, "none")],
    )
    kept_journal = journal.Journal(path)
    kept_journal.put("one", choices)
    assert kept_journal.get("one") == choices
    kept_journal.close()
    with open(path, "ab") as file:
        file.write(
            b'["two", [["A',
        )
    kept_journal = journal.Journal(path)
    kept_journal.put("three", choices)
    kept_journal.close()
    with open(path, "ab") as file:
        file.write(b'["four", [["A", "x", "y"]]]\n["five", 3]\n[]\n' + b"[" * 100_000 + b"\n\xff\n")
    again = journal.Journal(path)
    assert again.get("one") == again.get("three") == choices
    assert [again.get(name) for name in ("two", "four", "five")] == [None] * 3
    monkeypatch.setattr(journal, "LARGEST", path.stat().st_size + 10)
    again.put("six", choices)
    again.close()
    assert journal.Journal(path).get("six") is None
    again.remove()
    assert not path.parent.exists()


def test_answers_of_a_run_in_a_store_are_kept_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert journal.answers_folder("s3://bucket/out").parent == tmp_path / "capsmith" / "answers"
    assert journal.answers_folder("s3://bucket/out") != journal.answers_folder("s3://bucket/other")
    assert journal.answers_folder("out").parts == ("out", journal.FOLDER)


def test_without_a_cache_that_can_be_written_no_answers_are_kept(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    for cache in ("/dev/null", str(tmp_path / "file"), "relative", None):
        monkeypatch.setenv("XDG_CACHE_HOME", cache) if cache else monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", "~")  # of a user without a home
        captioner = SimpleNamespace(journal=None)
        journal.forget_answers("s3://bucket/out")
        with journal.answers_kept([captioner], "s3://bucket/out", "shard"):
            assert captioner.journal is None
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# costs


def test_a_dry_run_says_what_the_run_takes(serve, tmp_path, capsys):
    server = serve()
    complete = server.complete
    server.complete = lambda request, picture: (
        200,
        complete(request, picture)[1] | {"usage": {"prompt_tokens": 1000}},
    )
    assert generate(server, tmp_path / "out", "--dry-run", "--max-length", "22", "--redraws", "2") == 0
    out = capsys.readouterr().out
    assert (
        "/v1: about 12 requests, at most 36 with redraws; about 12,000 tokens in, at most 480 out, without redraws"
        in out
    )
    assert len(server.requests) == 1 and not (tmp_path / "out").exists()
    for body, expected in (
        ('{"max_tokens": null, "max_completion_tokens": 50}', "at most 1,200 out"),
        ('{"max_tokens": null}', "no limit to those out"),
    ):
        assert generate(server, tmp_path / "out", "--dry-run", "--extra-body", body) == 0
        assert expected in capsys.readouterr().out


def test_what_is_for_servers_is_refused_for_others(tmp_path, capsys):
    assert (
        capsmith.main(
            [
                "generate",
                "--input",
                "scenes:val,n=2",
                "--model",
                "coca_tiny",
                "--output",
                str(tmp_path / "out"),
                "--header",
                "a: b",
                "--max-requests",
                "3",
                "--extra-body",
                "{",
            ]
        )
        == 2
    )
    assert "--extra-body {: is not a JSON object" in capsys.readouterr().err
    assert (
        capsmith.main(
            [
                "generate",
                "--input",
                "scenes:val,n=2",
                "--model",
                "coca_tiny",
                "--output",
                str(tmp_path / "out"),
                "--header",
                "a: b",
                "--max-requests",
                "3",
            ]
        )
        == 2
    )
    assert "--header: is for a server's model" in (err := capsys.readouterr().err) and "--max-requests: is for" in err
