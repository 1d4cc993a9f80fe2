"""The number of requests adapts to slow and limited servers, in virtual time."""

import asyncio

import pytest

from captioners.server.captioner import load_server
from captioners.server.config import ServerConfig
from captioners.server.load import TIMEOUT

from .fake_server import TWO, pictures
from .virtual_time import Limited, OneAtATime, Simulated

ADDRESS = "openai:http://sim:1#m"


def all_captioned(results, count):
    return [result.key for result in results] == [f"key/{number}" for number in range(count)] and not any(
        result.error for result in results
    )


@pytest.mark.parametrize("patience", [float("inf"), 60])
def test_one_at_a_time_and_slow(monkeypatch, patience):
    """64 at a time: the last waits 384 s, more than a time-out or a proxy allows. Each request takes at least 6 s."""
    server = OneAtATime(monkeypatch, patience)
    assert all_captioned(load_server(ADDRESS).caption(pictures(150), TWO), 150)
    assert server.ended <= 1.01 * 6 * 151 and 6 * 64 > TIMEOUT  # the blank picture is one
    assert server.most_in_flight == 64 and server.asked <= 151 + (0 if patience > 60 else 150)


@pytest.mark.parametrize("says", [True, False])
def test_limited_to_twenty_a_minute(monkeypatch, says):
    """The minimum: 20 at once, and 20 more each minute."""
    server = Limited(monkeypatch, says=says)
    assert all_captioned(load_server(ADDRESS).caption(pictures(119), TWO), 119)
    assert 300 < server.ended <= 1.05 * 301 and server.refused < 119


def test_so_many_requests_a_minute_as_the_command_says(monkeypatch):
    server = Limited(monkeypatch)
    captioner = load_server(ADDRESS, ServerConfig(requests_per_minute=20))
    assert all_captioned(captioner.caption(pictures(60), TWO), 60)
    assert server.refused == 0 and server.ended == pytest.approx(60 * 3 + 1)
    assert min(later - earlier for earlier, later in zip(server.times, server.times[1:])) >= 3 - 1e-6


class Failing(Simulated):
    """One second per request; `fail(server, number)` may return another answer for the request of that number."""

    def __init__(self, monkeypatch, fail):
        super().__init__(monkeypatch)
        self.fail = fail

    async def serve(self, request):
        number = self.asked
        await asyncio.sleep(1)
        return self.fail(self, number) or self.captions(request)


def test_a_wait_is_everybodys(monkeypatch):
    """One of many requests is told to come again later: no request is sent before that time."""

    def fail(server, number):
        if number == 30:
            server.told = server.now
            return 503, {"Retry-After": "100"}, "restarting"

    server = Failing(monkeypatch, fail)
    server.told = 0
    assert all_captioned(load_server(ADDRESS).caption(pictures(200), TWO, batch_size=8), 200)
    assert server.told and not [time for time in server.times if server.told < time < server.told + 100]


def test_requests_halve_and_grow_again(monkeypatch):
    def fail(server, number):
        if number > 1:
            allowed.append(captioner._server.load.allowed)
        if number in (20, 21, 22):  # together: one halving
            return 429, {}, "slow down"

    allowed = []
    Failing(monkeypatch, fail)
    captioner = load_server(ADDRESS)
    assert all_captioned(captioner.caption(pictures(300), TWO, batch_size=16), 300)
    assert (
        min(allowed) == 8 and allowed[-1] == 16 and sorted(allowed[allowed.index(8) :]) == allowed[allowed.index(8) :]
    )


def test_a_picture_that_hangs_is_its_rows_while_others_are_served(monkeypatch):
    """Its time counts from when it could be served; it is tried again, and then a blank picture is sent."""

    async def serve(self, request):
        url = request["messages"][0]["content"][0]["image_url"]["url"]
        await asyncio.sleep(1e6 if url.endswith("cGljdHVyZSAz") else 1)
        return self.captions(request)

    server = Simulated(monkeypatch)
    monkeypatch.setattr(Simulated, "serve", serve, raising=False)
    results = list(load_server(ADDRESS).caption(pictures(6), TWO))
    assert [bool(result.error) for result in results] == [False, False, False, True, False, False]
    assert results[3].error == "the server refuses the picture: 0 no answer in 300 s"
    assert 2 * TIMEOUT < server.ended < 2.1 * TIMEOUT and server.asked == 1 + 6 + 1 + 1


def test_a_picture_that_hangs_is_timed_from_when_its_turn_came(monkeypatch):
    """Its time does not count from the last answer to another request: those are served for long afterwards."""
    OneAtATime(monkeypatch)
    tries, serve = [], OneAtATime.serve

    async def hang(self, request):
        if request["messages"][0]["content"][0]["image_url"]["url"].endswith("cGljdHVyZSAw"):
            tries.append(self.now)
            await asyncio.sleep(1e6)
        return await serve(self, request)

    monkeypatch.setattr(OneAtATime, "serve", hang)
    results = list(load_server(ADDRESS).caption(pictures(120), TWO))
    assert [result.key for result in results if result.error] == ["key/0"] and len(tries) == 3
    assert tries[1] - tries[0] < 2 * TIMEOUT < 6 * 120 - TIMEOUT / 3  # asked again while the others are still served


def test_a_server_that_hangs_ends_the_shard(monkeypatch):
    async def serve(self, request):
        await asyncio.sleep(0 if self.asked == 1 else 1e6)
        return self.captions(request)

    server = Simulated(monkeypatch)
    monkeypatch.setattr(Simulated, "serve", serve, raising=False)
    with pytest.raises(
        ConnectionError, match="http://sim:1/v1: 0 no answer in 300 s; a blank picture gets no caption either"
    ):
        list(load_server(ADDRESS).caption(pictures(40), TWO))
    assert server.ended < 3.2 * TIMEOUT
