"""The ceilings of the card, our decoding compared with them, and the paper's loop."""

from collections.abc import Iterator
from unittest.mock import patch

import torch

from benchmarks.decoding import ending_at
from benchmarks.floor import floor_seconds
from benchmarks.gpu.bench import Bench, coco_lengths
from benchmarks.side_by_side import Peer, seconds_of
from captioners.base import SamplingConfig
from captioners.coca.captioner import CoCaCaptioner
from captioners.decoding import batch as draw


def ceilings(bench: Bench) -> Iterator[dict]:
    """The two ceilings: FLOP/s of large products, and bytes/s of a large copy."""
    for name, dtype, tf32 in (("bf16", "bf16", False), ("fp32", "fp32", False), ("TF32", "fp32", True)):
        yield {"case": f"product of {bench.scale.product} rows, {name}", "tflops": bench.rate(dtype, tf32) / 1e12}
    yield {"case": f"copy of {bench.scale.copy_mb} MB, read and written", "tb_per_s": bench.bandwidth() / 1e12}


def decoding(bench: Bench) -> Iterator[dict]:
    """The large CoCa in bf16 with the most important number of pictures at a time: cold, warm, captions that end."""
    scale, flight = bench.scale, bench.scale.flights[0]
    captioner = bench.captioner(scale.large, "bf16")
    yield from cold_and_warm(bench, captioner, flight)
    ending = bench.captioner(scale.large, "bf16", ending=True)
    sampling = SamplingConfig(
        num_captions=scale.captions, top_p=0.9, max_length=scale.tokens, min_length=min(8, scale.tokens)
    )
    decode(bench, ending, flight, pictures=flight, sampling=sampling)  # warms up
    yield decode(bench, ending, flight, pictures=3 * flight, sampling=sampling) | {
        "case": f"{scale.large}, bf16, {flight}, captions that end"
    }
    lengths = torch.tensor(coco_lengths(flight * scale.captions)).view(flight, -1).to(bench.device)
    with patch.object(draw, "choose_next", ending_at(lengths)):
        captioner, sampling = bench.anew(captioner), sampling.model_copy(update={"min_length": 0})
        decode(bench, captioner, flight, pictures=flight, sampling=sampling)  # warms up
        yield decode(bench, captioner, flight, pictures=3 * flight, sampling=sampling) | {
            "case": f"{scale.large}, bf16, {flight}, COCO's lengths"
        }


def other_flights(bench: Bench) -> Iterator[dict]:
    """The same with other numbers of pictures at a time, then greedy, then with cuDNN's attention on or off."""
    scale = bench.scale
    captioner = bench.captioner(scale.large, "bf16")
    for flight in scale.flights[1:]:
        yield from cold_and_warm(bench, captioner, flight)
    flight = scale.flights[0]
    captioner = bench.anew(captioner)
    greedy = SamplingConfig(strategy="greedy", max_length=scale.tokens, min_length=scale.tokens)
    decode(bench, captioner, flight, pictures=flight, sampling=greedy)  # warms up
    yield decode(bench, captioner, flight, pictures=3 * flight, sampling=greedy) | {
        "case": f"{scale.large}, bf16, {flight}, greedy"
    }
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(not before)
    try:
        cold, warm = cold_and_warm(bench, captioner, flight)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    name = f"cuDNN's attention {'off' if before else 'on'}, it is {'on' if before else 'off'} otherwise"
    yield cold | {"case": f"{cold['case']}, {name}"}
    yield warm | {"case": f"{warm['case']}, {name}"}


def small(bench: Bench) -> Iterator[dict]:
    """The small CoCa with all numbers of pictures at a time."""
    captioner = bench.captioner(bench.scale.small, "bf16")
    for flight in bench.scale.flights:
        yield from cold_and_warm(bench, captioner, flight)


def cold_and_warm(bench: Bench, captioner: CoCaCaptioner, flight: int) -> Iterator[dict]:
    """The first captions with `flight` pictures at a time, then those of three times as many in a refilled batch."""
    tokens, captioner = bench.scale.tokens, bench.anew(captioner)
    sampling = SamplingConfig(num_captions=bench.scale.captions, top_p=0.9, max_length=tokens, min_length=tokens)
    name = f"{captioner.name}, bf16, {flight}"
    yield decode(bench, captioner, flight, pictures=flight, sampling=sampling) | {"case": f"{name}, cold"}
    yield decode(bench, captioner, flight, pictures=max(3 * flight, bench.scale.warm), sampling=sampling) | {
        "case": f"{name}, warm"
    }


def decode(bench: Bench, captioner: CoCaCaptioner, flight: int, *, pictures: int, sampling: SamplingConfig) -> dict:
    """Caption `pictures` pictures, `flight` at a time: captions per second, the share of the ceiling, and memory."""
    captioner.batch_size, lengths = flight, []

    def counted(tokens) -> str:
        lengths.append(len(list(tokens)))
        return ""

    requests = list(bench.pictures(captioner, pictures))
    bench.forget()
    with patch.object(captioner, "decode", counted):
        seconds = seconds_of(lambda: list(captioner.caption(iter(requests), sampling)), bench.device)
    if len(lengths) != pictures * sampling.num_captions:
        raise RuntimeError(f"{len(lengths)} captions of {pictures} pictures, not {sampling.num_captions} of each")
    of_pictures = torch.tensor(lengths).view(pictures, -1)
    rate, bandwidth = bench.rate("bf16"), bench.bandwidth()
    floor = sum(
        floor_seconds(captioner, together, rate, bytes_per_s=bandwidth) for together in of_pictures.split(flight)
    )
    return {
        "captions_per_s": len(lengths) / seconds,
        "share_of_ceiling": floor / seconds,
        "gigabytes": bench.gigabytes(),
        "tokens": of_pictures.float().mean().item(),
        "captions": len(lengths),
        "seconds": seconds,
    }


def paper(bench: Bench) -> Iterator[dict]:
    """The paper's loop: `generate` of open_clip, once for each caption of a picture."""
    scale = bench.scale
    if bench.peer_python is None:
        yield {"case": "left out", "why": "no environment with the peer: --peer-python"}
        return
    options = {
        "architecture": scale.paper,
        "pictures": max(count for _, count in scale.peer),
        "tokens": scale.tokens,
        "captions": scale.captions,
        "device": bench.device,
        "dtype": scale.peer[0][0],
    }
    bench.forget()
    with Peer(bench.peer_python, "decoding_peer.py", **options) as peer:
        versions = ", ".join(f"{name} {version}" for name, version in peer.ready.items())
        for dtype, count in scale.peer:
            cost = peer.ask({"pictures": count, "dtype": dtype})
            captions = count * scale.captions
            yield {
                "case": f"{scale.paper}, {dtype}, {count}: {versions}",
                "captions_per_s": captions / cost["seconds"],
                "gigabytes": round(cost["peak"] / 1e9, 2),
                "captions": captions,
                "seconds": cost["seconds"],
            }
