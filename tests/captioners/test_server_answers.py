"""The forms of servers' answers and addresses; no server is contacted."""

import json
import time
from email.utils import formatdate

import pytest

from captioners.base import SamplingConfig
from captioners.server.address import read_address
from captioners.server.answers import choices_of, error_of, hide, hide_all, models_of, read_json, seconds_to_wait
from captioners.server.client import Connection, Response
from captioners.server.config import ServerConfig
from captioners.server.fields import Dialect


def said(*choices):
    return {"choices": list(choices)}


def message(content, **more):
    return {"message": {"role": "assistant", "content": content}, "finish_reason": "stop", **more}


@pytest.mark.parametrize(
    "content, text",
    [
        (" A dog. ", "A dog."),
        ("<think>A dog?</think>A dog.", "A dog."),
        ("Let me see.</think>\n\nA dog.", "A dog."),
        ("<think>A dog", ""),
        ("A dog.<|im_end|>", "A dog."),
        ("```text\nA dog.\n```", "A dog."),
        ("Here is a caption: A dog.", "A dog."),
        ([{"type": "text", "text": "A "}, {"type": "text", "text": "dog."}], "A dog."),
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": "A dog."}],
            "A dog.",
        ),
        (["A dog."], "A dog."),
        (None, ""),
        (3, ""),
        ([], ""),
        ({}, ""),
        ("A dog \ud83d.", "A dog ."),  # half of an emoji
        ("A \ud83d\udc36.", "A 🐶."),  # both halves, as JSON writes them
        ("A\x00dog\x1b[31m.", "A dog [31m."),
    ],
)
def test_the_text_of_a_choice(content, text):
    (choice,) = choices_of(read_json(json.dumps(said(message(content))).encode()))
    assert choice.text == text
    choice.text.encode()


@pytest.mark.parametrize(
    "logprobs, expected",
    [
        ({"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1}]}, -1.5),
        ({"tokens": ["a", "b"], "token_logprobs": [-0.5, -1.0]}, -1.5),
        ([{"logprob": -0.5}], -0.5),
        (None, None),
        ({}, None),
        ({"content": None}, None),
        ({"content": []}, None),
        ([], None),
        (True, None),
        ("x", None),
        ({"content": [{"token": "a"}]}, None),
        ({"token_logprobs": [None, -1]}, None),
        ({"content": [{"logprob": float("nan")}]}, None),
        ({"content": [{"logprob": float("-inf")}]}, None),
        ({"content": "ab"}, None),
        ({"content": [3]}, 3.0),
        ({"content": [-(10**400)]}, None),
        ([10**400, -(10**400)], None),
    ],
)
def test_log_probabilities_in_all_forms(logprobs, expected):
    (choice,) = choices_of(read_json(json.dumps(said(message("a", logprobs=logprobs))).encode()))
    assert choice.logprob == expected


@pytest.mark.parametrize(
    "indices, order", [([1, 0], "ba"), ([None, None], "ab"), ([0, 0], "ab"), ([None, 1], "ab"), (["1", "0"], "ab")]
)
def test_choices_stand_by_their_index_where_all_have_one(indices, order):
    choices = choices_of(said(*(message(text, index=index) for text, index in zip("ab", indices))))
    assert "".join(choice.text for choice in choices) == order


@pytest.mark.parametrize(
    "reason, cut",
    [
        ("length", True),
        ("MAX_TOKENS", True),
        ("model_length", True),
        ("stop", False),
        ("eos_token", False),
        (None, False),
        (3, False),
        ({}, False),
    ],
)
def test_a_caption_is_truncated_where_its_length_ended_it(reason, cut):
    (choice,) = choices_of(said(message("a", finish_reason=reason)))
    assert choice.caption(SamplingConfig()).truncated is cut


@pytest.mark.parametrize(
    "answer", [None, 3, "x", [], {}, {"choices": None}, {"choices": {}}, {"choices": ["x"]}, {"error": "no"}]
)
def test_what_is_no_completion_has_no_choices(answer):
    with pytest.raises(ValueError, match="no chat completion"):
        choices_of(answer)


def test_a_choice_may_be_an_error():
    answer = said({"finish_reason": "error", "error": {"code": 502, "message": "Provider returned error"}})
    with pytest.raises(ValueError, match="a choice is an error"):
        choices_of(answer)
    assert str(error_of(200, json.dumps(answer).encode())) == "502 Provider returned error"


@pytest.mark.parametrize("body", [b"", b"[" * 200_000, b'{"a":' * 100_000, b"9" * 5000, b"\xff\xfe", b"<html>"])
def test_what_is_no_json_is_a_value_error(body):
    with pytest.raises(ValueError):
        read_json(body)
    assert error_of(502, body).status == 502
    assert models_of(body) == []


@pytest.mark.parametrize(
    "body, expected",
    [
        ({"error": {"message": "Bad image", "type": "x", "param": None, "code": "y"}}, "400 Bad image"),  # OpenAI
        ({"object": "error", "message": "Bad image", "code": 40003}, "400 Bad image"),  # vLLM, once
        ({"detail": "Bad image"}, "400 Bad image"),  # FastAPI
        ({"detail": [{"loc": ["body", "seed"], "msg": "Bad image", "type": "extra"}]}, "400 Bad image (body.seed)"),
        ({"message": {"detail": [{"loc": ["body", "n"], "msg": "Bad image"}]}}, "400 Bad image (body.n)"),  # Mistral
        ({"message": '{"detail":[{"loc":["body","n"],"msg":"Bad image"}]}'}, "400 Bad image (body.n)"),  # its proxy
        ([{"error": {"code": 400, "message": "Bad image", "status": "INVALID_ARGUMENT"}}], "400 Bad image"),  # Gemini
        ({"error": "Bad image", "error_type": "validation"}, "400 Bad image"),  # TGI, Ollama
        (
            {"error": {"message": "Provider error", "metadata": {"raw": '{"error": {"message": "Bad image"}}'}}},
            "400 Provider error (Bad image)",
        ),  # OpenRouter
        ({"error": {"error": {"error": {"message": "Bad image"}}}}, "400 Bad image"),
        ("Bad image", "400 Bad image"),
        (["Bad image"], "400 Bad image"),
        ({}, "400 {}"),
        ([], "400 []"),
        (None, "400 null"),
        ({"error": {}}, '400 {"error": {}}'),
        ({"error": "Bad\x1b[2J\nimage" + "x" * 500}, "400 Bad [2J image" + "x" * 187 + "…"),
    ],
)
def test_the_words_of_an_error(body, expected):
    assert str(error_of(400, json.dumps(body).encode())) == expected


@pytest.mark.parametrize(
    "body, expected",
    [
        (b"Bad gateway", "502 Bad gateway"),
        (b"", "502 nothing came"),
        (b"\xff", "502 \ufffd"),
        (b"<html><head><title>Just a\nmoment</title>", "502 a web page came: Just a moment"),
        (b"<p>", "502 a web page came"),
    ],
)
def test_the_words_of_an_error_that_is_no_json(body, expected):
    assert str(error_of(502, body)) == expected


@pytest.mark.parametrize(
    "body, status",
    [
        ({"error": {"code": 429, "message": "slow"}}, 429),
        ({"error": {"code": "503"}}, 503),
        ({"code": 502, "message": "x"}, 502),
        ({"error": {"code": "content_filter"}}, 200),
        ({"error": "Unexpected endpoint or method"}, 200),
        ({"error": {"code": 9}}, 200),
        ({"error": {"code": "9" * 5000}}, 200),
    ],
)
def test_an_error_under_200_has_the_status_that_it_names(body, status):
    assert error_of(200, json.dumps(body).encode()).status == status


@pytest.mark.parametrize(
    "headers, words, seconds",
    [
        ({"Retry-After": "7"}, "", 7),
        ({"retry-after-ms": "1500", "Retry-After": "2"}, "", 1.5),
        ({}, "Please try again in 20s.", 20),
        ({}, "try again in 350ms", 0.35),
        ({}, "Please try again in 1m30.5s", 90.5),
        ({}, '"retryDelay": "43s"', 43),
        ({}, "quota will reset after 26 seconds", 26),
        ({}, "retry later", 0),
        ({}, "try again in 30 days", 0),
        ({"Retry-After": "1e9"}, "", 600),
        ({"Retry-After": formatdate(time.time() - 5)}, "", 0),
    ],
)
def test_the_time_that_a_server_asks_for(headers, words, seconds):
    assert seconds_to_wait(headers, words) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "body, names",
    [
        ({"data": [{"id": "a"}, {"id": "b\n"}, {}, 3]}, ["a", "b"]),
        ([{"id": "a"}], ["a"]),
        ({"models": [{"name": "a"}]}, ["a"]),
        ({"data": None}, []),
        ({"data": "a"}, []),
        (3, []),
        ({"data": [{"id": 3}]}, []),
    ],
)
def test_the_models_that_a_server_lists(body, names):
    assert models_of(json.dumps(body).encode()) == names


def test_keys_are_masked_wherever_they_stand():
    words = "Bearer a1b2c3d4e5 sk-proj-abc***xyz AIza" + "b" * 30 + " my-own-key https://me:pass@host/ gsk_12345678"
    assert hide_all(words, ["my-own-key"]) == "*** *** *** *** https://***host/ ***"
    assert (
        hide_all("Missing bearer token in the header; a sketch", []) == "Missing bearer token in the header; a sketch"
    )
    assert hide("a bearer walks; EMPTY", ["EMPTY", ""]) == "a bearer walks; EMPTY"  # what is no secret, in a caption


@pytest.mark.parametrize(
    "name, url",
    [
        ("http://host:8000", "http://host:8000/v1/chat/completions"),
        ("http://host:8000/", "http://host:8000/v1/chat/completions"),
        ("http://host:8000/v1", "http://host:8000/v1/chat/completions"),
        ("http://host:8000//v1//", "http://host:8000/v1/chat/completions"),
        ("http://host:8000/v1/chat/completions", "http://host:8000/v1/chat/completions"),
        (" HTTP://Host:8000/v1/models ", "http://Host:8000/v1/chat/completions"),
        ("localhost:8000", "http://localhost:8000/v1/chat/completions"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000/v1/chat/completions"),
        ("gpu-node/v1", "http://gpu-node/v1/chat/completions"),
        ("api.openai.com", "https://api.openai.com/v1/chat/completions"),
        ("http://[::1]:8000", "http://[::1]:8000/v1/chat/completions"),
        ("https://ark.example/api/v3", "https://ark.example/api/v3/chat/completions"),
        ("https://gemini.example/v1beta/openai/", "https://gemini.example/v1beta/openai/chat/completions"),
        ("https://groq.example/openai/v1", "https://groq.example/openai/v1/chat/completions"),
        ("https://router.example/api", "https://router.example/api/v1/chat/completions"),
        ("https://models.example/inference/chat/completions", "https://models.example/inference/chat/completions"),
        (
            "https://x.azure.example/openai/deployments/gpt?api-version=2024-10-21",
            "https://x.azure.example/openai/deployments/gpt/chat/completions?api-version=2024-10-21",
        ),
    ],
)
def test_an_address_in_any_usual_way(name, url):
    address = read_address(f"openai:{name}#org/m")
    assert address.url("chat/completions") == url and address.model == "org/m"


@pytest.mark.parametrize(
    "base, is_local",
    [
        ("http://localhost:1", True),
        ("http://127.0.0.9", True),
        ("http://[::1]:2", True),
        ("http://10.0.0.1", False),
        ("https://localhost.evil.example", False),
    ],
)
def test_which_servers_are_here(base, is_local):
    assert read_address(f"openai:{base}#m").is_local is is_local


def test_what_is_said_of_a_server_is_checked(monkeypatch):
    monkeypatch.setenv("MY_KEY", " s3cret\n")
    config = ServerConfig(header=["api-key: $MY_KEY", "X-Title: ${MY_KEY}!"], extra_body={"b": 1, "a": None})
    assert config.headers == {"api-key": "s3cret", "X-Title": "s3cret!"} and config.more_fields == {"a": None, "b": 1}
    assert config.extra_body == ServerConfig(extra_body='{"b": 1, "a": null}').extra_body
    with pytest.raises(ValueError, match="the environment has no NOT_SET, NOR_THIS"):
        ServerConfig(header=["a: $NOT_SET ${NOR_THIS}"]).headers  # noqa: B018
    for wrong in (
        {"header": ["Bearer x"]},
        {"header": ["a: b\r\nHost: c"]},
        {"header": ["Host: c"]},
        {"header": ["a:"]},
        {"extra_body": "x"},
        {"extra_body": "[1]"},
        {"extra_body": "[" * 100_000},
        {"extra_body": {"messages": []}},
        {"extra_body": {"stream": True}},
        {"max_requests": 0},
        {"requests_per_minute": 0},
    ):
        with pytest.raises(ValueError):
            ServerConfig(**wrong)


SECRETS = {"TOK": "s3cret-token", "OPENAI_API_KEY": "our-own-key"}


@pytest.mark.parametrize(
    "header, hidden, expected",
    [
        ("X-Title: photograph captions", [], "photograph captions"),
        ("X-Title: a shop of $TOK", ["s3cret-token"], "a shop of"),
        ("Cookie: session=$TOK; lang=photograph-en", ["s3cret-token", "photograph-en"], "session="),
        ("Authorization: Bearer literal-key", ["literal-key", "our-own-key"], "Bearer"),
        ("X-Goog-Api-Key: literal-key", ["literal-key"], "X-Goog-Api-Key"),
    ],
)
def test_secrets_are_keys_and_what_the_environment_gives(monkeypatch, header, hidden, expected):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    connection = Connection(read_address("openai:http://host:1#m"), ServerConfig(header=[header]))
    text = hide(f"a sign of {expected} and {' and '.join(hidden)}", connection.secrets)
    assert expected in text and not [secret for secret in hidden if secret in text]


@pytest.mark.parametrize(
    "header, key, sent, message",
    [
        ("authorization: Basic abcdefgh", "our-own-key", None, "does not take the headers given"),
        ("API-KEY: abcdefgh", "our-own-key", None, "does not take the headers given"),
        ("X-Title: a shop", "our-own-key", "Bearer our-own-key", "does not take the key in OPENAI_API_KEY"),
        ("X-Title: a shop", "", None, "set OPENAI_API_KEY"),
    ],
)
def test_our_key_is_sent_where_no_other_is_given(monkeypatch, header, key, sent, message):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    connection = Connection(read_address("openai:http://host:1#m"), ServerConfig(header=[header]))
    assert connection.headers.get("Authorization") == sent and message in connection.about_the_key("401")


@pytest.mark.parametrize(
    "location, target",
    [
        ("https://other.example/v1", "https://other.example,"),
        ("/api/v1/", "http://host,"),
        ("http://[bad", "an address that cannot be read"),
    ],
)
def test_where_a_server_sends_requests_on_to(location, target):
    reply = Response(307, {"Location": location}, b"")
    assert f"redirects requests to {target}" in Connection(read_address("openai:http://host:1#m"))._redirect_problem(
        reply
    )


REQUEST = {
    "model": "m",
    "messages": [],
    "max_tokens": 9,
    "temperature": 1.0,
    "logprobs": True,
    "n": 2,
    "top_p": 0.9,
    "seed": 1,
}


@pytest.mark.parametrize(
    "status, words, given_up",
    [
        (
            400,
            "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
            "max_tokens",
        ),
        (403, "You are not allowed to request logprobs from this model", "logprobs"),
        (422, "Extra inputs are not permitted (body.seed)", "seed"),
        (400, "'n' : number must be at most 1 with this model", "n"),
        (400, "temperature and top_p cannot both be specified for this model", "top_p"),
        (400, "Unsupported value: 'temperature' does not support 1.0", "temperature"),
        (400, "no", "logprobs"),  # it does not say what
        (200, "1 captions came for 2", "n"),
        (404, "The model does not exist", None),
        (400, "top_k: unknown; not n", "n"),
        (500, "image input is not supported", None),
    ],
)
def test_the_field_that_a_server_refuses_is_done_without(status, words, given_up):
    dialect = Dialect()
    assert dialect.give_up(REQUEST, SamplingConfig(num_captions=2), status=status, words=words) == given_up
    spoken = dialect.translate(REQUEST)
    assert spoken == {
        **{name: value for name, value in REQUEST.items() if name != given_up},
        **({"max_completion_tokens": 9} if given_up == "max_tokens" else {}),
    }
    if given_up:  # each is given up once
        assert dialect.give_up(REQUEST, SamplingConfig(num_captions=2), status=404, words=given_up) is None


def test_what_was_asked_for_is_never_given_up():
    for name, sampling in (
        ("top_p", SamplingConfig(top_p=0.5)),
        ("temperature", SamplingConfig(strategy="greedy")),
        ("temperature", SamplingConfig(temperature=0.5)),
        ("top_k", SamplingConfig(top_k=3)),
    ):
        assert Dialect().give_up({**REQUEST, "top_k": 3}, sampling, status=400, words=f"{name} is unknown") is None


@pytest.mark.parametrize("answer, cut", [("text", ("preamble", "quotes")), ("line", ()), ("json", ())])
def test_a_caption_says_what_was_cut_off_the_answer_and_other_answers_are_whole(answer, cut):
    (choice,) = choices_of(said(message('Here is a caption: "A dog."')))
    caption = choice.caption(SamplingConfig(answer=answer))
    assert caption.cut == cut
    assert caption.text == ("A dog." if cut else 'Here is a caption: "A dog."')
