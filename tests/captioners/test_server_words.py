"""Requests with an instruction, with or without a picture, and fields that a server lacks."""

import json
import logging

import pytest

from captioners.base import Request, SamplingConfig
from captioners.load import load_captioner
from captioners.server import journal, load

from .fake_server import captions, pictures, texts

ONE = SamplingConfig(num_captions=1, seed=3)
SCHEMA = {"type": "object", "properties": {"long": {"type": "string"}}, "required": ["long"]}


def words(count: int) -> list[Request]:
    """Requests without pictures, of unequal length."""
    return [Request(f"key/{number}", None, "red " * number + "dog?") for number in range(count)]


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(load, "wait_of", lambda level: 0.0)


def sends_json(server, **answers):
    """Makes the server answer an instruction with the text of that name."""

    def complete(request, question):
        text = answers.get(question.decode("utf-8", "replace").partition("\n")[0], "a plain answer")
        return 200, {"choices": [{"message": {"content": text}}] * request.get("n", 1)}

    server.complete = complete


def test_a_request_holds_the_words_with_a_picture_or_alone(server):
    [(key, picture, _)] = pictures(1)
    requests = [Request("a", None, "A red dog."), Request("b", picture, "Is it a dog?"), Request(key, picture)]
    results = captions(server.model, ONE, requests=requests)
    assert [result.key for result in results] == ["a", "b", key] and all(result.captions for result in results)
    contents = [request["messages"][0]["content"] for request, _ in server.requests[1:]]
    alone = [content for content in contents if isinstance(content, str)]
    parts = [content for content in contents if not isinstance(content, str)]
    assert alone == ["A red dog."]
    assert [part["type"] for content in parts for part in content] == ["image_url", "text"] * 2
    assert {content[1]["text"] for content in parts} == {"Is it a dog?", "Describe this picture in one sentence."}


def test_a_request_of_nothing_is_its_own_error(server):
    results = captions(server.model, ONE, requests=[Request("a", None), Request("b", None, "dog?")])
    assert results[0].error == "there is neither a picture nor an instruction" and results[1].captions


def test_what_servers_cannot_do_is_refused_before_any_work(server):
    with pytest.raises(ValueError, match="prefix 'a ': servers do not support it; to steer .* use --instruction"):
        load_captioner(server.model).check(SamplingConfig(prefix="a "))
    assert server.requests == []


@pytest.mark.parametrize("refused", ["Unsupported parameter: stop", None])
def test_stops_are_sent_and_heeded_here_where_a_server_does_not(server, refused):
    """A server may support, refuse or ignore stops."""
    sends_json(server, **{"dog?": "A dog.### A cat.\n\nUser: more"})
    server.spoil = lambda request, _: (
        (400, {"error": {"message": refused}}) if refused and request and "stop" in request else None
    )
    sampling = ONE.model_copy(update={"stop": ("\n\nUser:", "###")})
    [result] = captions(server.model, sampling, requests=words(1))
    assert result.captions[0].text == "A dog." and not result.captions[0].truncated
    sent = [request.get("stop") for request in server.seen(b"dog?")]
    assert sent == [None if refused else ["\n\nUser:", "###"]]


@pytest.mark.parametrize("takes", ["json_schema", "json_object", None])
@pytest.mark.parametrize("says", ["response_format.type {}: not supported", "guided grammar: invalid {}", "no"])
def test_a_schema_is_sent_where_the_server_takes_it_then_json_then_nothing(server, takes, says):
    answer = '{"long": "A dog runs."}'
    sends_json(server, **{"dog?": answer})

    def spoil(request, _):
        if request and (kind := request.get("response_format", {}).get("type")) not in (takes, None):
            return 400, {"error": {"message": says.format(kind)}}

    server.spoil = spoil
    sampling = ONE.model_copy(update={"answer": "json", "json_schema": json.dumps(SCHEMA)})
    captioner = load_captioner(server.model)
    assert texts(captioner.caption(words(1), sampling)) == {"key/0": [answer]}
    [request] = server.seen(b"dog?\nAnswer in JSON.")
    sent = request.get("response_format")
    if takes == "json_schema":
        assert sent["json_schema"]["schema"] == SCHEMA and sent["json_schema"]["strict"]
    assert (sent or {}).get("type") == takes
    assert request["logprobs"]  # nothing else was given up


@pytest.mark.parametrize("instruction", ["dog?", "dog? In JSON!", None])
def test_json_is_named_in_each_request_for_it_as_some_servers_demand(server, instruction):
    demand = "Prompt must contain the word 'json' in some form to use 'response_format' of type 'json_object'."

    def spoil(request, words):
        if request and request.get("response_format", {}).get("type") == "json_schema":
            return 400, {"error": {"message": "This response_format type is unavailable now"}}
        if request and "response_format" in request and "json" not in str(request["messages"]).lower():
            return 400, {"error": {"message": demand}}

    server.spoil = spoil
    sampling = ONE.model_copy(update={"answer": "json", "json_schema": json.dumps(SCHEMA)})
    requests = pictures(1) if instruction is None else [Request("key/0", None, instruction)]
    [result] = captions(server.model, sampling, requests=requests)
    assert result.captions and not result.error
    request, _ = server.requests[-1]
    assert request["response_format"] == {"type": "json_object"}
    content = request["messages"][0]["content"]
    words = content if isinstance(content, str) else content[1]["text"]
    assert words.lower().count("json") == 1


def test_json_and_lines_come_as_they_were_said_and_text_without_what_is_round_it(server):
    reply = "Sure! Here is the caption:\n\n**A dog runs.**"
    sends_json(server, **{"dog?": reply})
    results = {
        answer: captions(server.model, ONE.model_copy(update={"answer": answer}), requests=words(1))[0]
        .captions[0]
        .text
        for answer in ("text", "line", "json")
    }
    assert results == {"text": "A dog runs.", "line": reply, "json": reply}


def test_a_server_without_pictures_is_asked_by_words_alone(server, at_once):
    """For requests with pictures it fails once for all, and no single picture is to blame."""
    refusal = "No endpoints found that support image input"
    server.spoil = lambda request, _: (
        (404, {"error": {"message": refusal}})
        if request and not isinstance(request["messages"][0]["content"], str)
        else None
    )
    captioner = load_captioner(server.model)
    assert all(result.captions for result in captioner.caption(words(5), ONE))
    with pytest.raises(ConnectionError, match=f"takes no pictures: 404 {refusal}"):
        list(captioner.caption(pictures(2), ONE))


def test_words_that_are_refused_are_at_fault_where_a_plain_question_is_answered(server, at_once):
    captioner = load_captioner(server.model)
    captioner.check(ONE)
    server.spoil = lambda request, question: (400, {"error": "moderated"}) if question == b"red red dog?" else None
    results = list(captioner.caption(words(4), ONE))
    assert [result.error for result in results] == ["", "", "the server refuses the request: 400 moderated", ""]
    assert isinstance(server.requests[-1][0]["messages"][0]["content"], str)  # and no picture
    server.spoil = lambda request, question: (400, {"error": "down"})
    with pytest.raises(ConnectionError, match="400 down; a plain question gets no answer either"):
        list(captioner.caption(words(4), ONE))


def test_what_requests_cost_is_judged_by_the_lengths_of_their_words(server):
    complete = server.complete
    server.complete = lambda *args: (200, complete(*args)[1] | {"usage": {"prompt_tokens": 1000}})
    captioner = load_captioner(server.model)
    captioner.check(ONE)
    [(key, picture, _)] = pictures(1)
    short, long = (Request(key, None, "dog " * count) for count in (10, 30))
    assert "about 10,000 tokens in" in captioner.cost(10, ONE, redraws=0)
    assert "about 200 tokens in" in captioner.cost(10, ONE, redraws=0, like=[short, long])
    assert "about 10,205 tokens in" in captioner.cost(10, ONE, redraws=0, like=[Request(key, picture, "dog " * 30)])


def test_answers_are_kept_by_what_was_asked(server, tmp_path):
    """Whole replies are kept, for later readers."""
    reply = "Here is the caption: A dog."
    sends_json(server, **{"dog?": reply, "red dog?": "A red dog."})
    captioner, sampling = load_captioner(server.model), ONE.model_copy(update={"answer": "line"})

    def answers(instruction):
        captioner.journal = journal.Journal(tmp_path / "x.jsonl")
        try:
            return texts(captioner.caption([Request("key", None, instruction)], sampling, column="syn_text_x"))["key"]
        finally:
            captioner.journal.close()

    assert [answers("dog?"), answers("red dog?")] == [[reply], ["A red dog."]]
    num_requests = len(server.requests)
    assert [answers("dog?"), answers("red dog?")] == [[reply], ["A red dog."]] and len(server.requests) == num_requests


def test_captions_of_words_that_are_all_the_same_are_told_of(server, caplog):
    sends_json(server)
    with caplog.at_level(logging.WARNING):
        captions(server.model, SamplingConfig(num_captions=2), requests=words(9))
    assert sum("are all the same" in line for line in caplog.messages) == 1
