"""Rewrites per second of a local language model, compared with transformers' `generate`.

Usage: `python -m benchmarks.rewrite --case laclip`. The last line of the output is a JSON object. The model is the
folder that CAPSMITH_LM names. The captions are COCO's, in CAPSMITH_DATA. `laclip`: a base model completes a prompt
with three pairs that are drawn for each caption; temperature 0.9, top-p 0.95, one rewrite of at most 77 tokens, as in
LaCLIP. `shared`: a chat with the same long instruction for all captions, and two rewrites of each.

The peer has the same model, prompts and dtype, in a process of its own. It uses transformers in the fastest way:
prompts are sorted by length, in left-padded batches with as many rows as we decode at a time, and one call makes
several rewrites of a prompt (`num_return_sequences`). To do equal work, each rewrite ends at a length that is drawn
from COCO's captions and is the same for both sides; a batch of the peer runs until its last row has ended.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.side_by_side import Peer, alternate
from captioners.base import Request, SamplingConfig
from captioners.decoding import batch as draw
from captioners.decoding.rows import Rules
from captioners.lm.captioner import LMCaptioner
from captioners.lm.load import load_lm
from captioners.weights import DTYPES

DATA = Path(os.environ.get("CAPSMITH_DATA", "../shared/data"))
LIMIT = 77  # tokens of a rewrite
PAIRS = (
    ("a dog on a beach", "A brown dog runs along the sandy beach near the water."),
    ("kitchen with stove", "A small kitchen with a white stove and wooden cabinets."),
    ("man surfing", "A man in a black wetsuit rides a large wave on his surfboard."),
    ("bus on street", "A red double-decker bus drives down a busy city street."),
    ("two cats sofa", "Two striped cats are asleep next to each other on a sofa."),
    ("plate of food", "A white plate holds grilled chicken, rice and green beans."),
)
RULES = (
    "You rewrite captions of photographs. Say what the caption says in other words, in one plain English sentence. "
    "Keep every number, colour and name. Do not add objects, people, places or actions that the caption does not "
    "name, and do not guess at moods, brands or the time of day. Do not begin with 'This image' or 'A photo of'. "
    "Do not use lists, quotation marks, brackets or line breaks. If the caption is not a sentence, make it one. "
    "If words are misspelt, correct them. If it is in another language, translate it. "
)
TEMPLATE = (
    "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    "<start_of_turn>model\n"
)


def completion_prompt(caption: str, rng: random.Random) -> str:
    pairs = "\n".join(f"{source} => {target}" for source, target in rng.sample(PAIRS, 3))
    return f"rewrite image captions\n{pairs}\n{caption} =>"


def chat_instruction(caption: str, rng: random.Random) -> str:
    examples = "\n".join(f"Caption: {source}\nRewritten: {target}" for source, target in PAIRS)
    return f"{RULES}\n{examples}\nCaption: {caption}"


CASES = {"laclip": (completion_prompt, 1), "shared": (chat_instruction, 2)}  # the prompt, and rewrites of each caption


def ending_at(lengths: torch.Tensor) -> Callable:
    """A `draw.choose_next` under which each rewrite ends with its `lengths[prompt, rewrite]`-th token after the
    prompt.
    """
    choose_next = draw.choose_next

    def choose(flight: draw.Flight, logits: torch.Tensor, rules: Rules) -> tuple[torch.Tensor, torch.Tensor]:
        ends = flight.length == lengths[flight.picture % len(lengths), flight.caption]  # includes the start token
        logits[:, rules.end_id] = torch.where(ends, 1e4, -1e4).to(logits.dtype)
        return choose_next(flight, logits, rules)

    return choose


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument(
        "--model", default=os.environ.get("CAPSMITH_LM"), help="folder of the model (default: CAPSMITH_LM)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="dtype of both sides")
    parser.add_argument("--device", default="cpu", help="device of both sides: cpu, cuda, …")
    parser.add_argument("--captions", type=int, default=64, help="captions per turn")
    parser.add_argument("--rows", type=int, default=32, help="rewrites decoded at a time, on both sides")
    parser.add_argument("--repeats", type=int, default=3, help="number of turns")
    args = parser.parse_args()
    if args.model is None:
        parser.error("--model, or CAPSMITH_LM, names no folder")

    prompt_of, each = CASES[args.case]
    captioner, rng = load_lm(args.model, device=args.device, dtype=args.dtype), random.Random(0)
    if args.case == "shared" and not captioner.chats:
        captioner.tokenizer.chat_template = TEMPLATE
        captioner = LMCaptioner(captioner.model, captioner.tokenizer, name="lm", weights_sha256="", source=args.model)
    pictures = json.loads((DATA / "coco1000.json").read_text(encoding="utf-8"))
    captions = [" ".join(picture["references"][0].split()) for picture in pictures[: args.captions]]
    requests = [Request(str(i), None, prompt_of(caption, rng)) for i, caption in enumerate(captions)]
    other_captions = [picture["references"][1] for picture in pictures]
    lengths = torch.tensor(
        [
            [min(len(captioner.encode_text_ids(text)) - 1, LIMIT) for text in rng.sample(other_captions, each)]
            for _ in requests
        ]
    )  # (captions, each), with the end token
    sampling = SamplingConfig(num_captions=each, temperature=0.9, top_p=0.95, max_length=LIMIT + 1, min_length=0)
    draw.choose_next = ending_at(lengths.to(args.device))

    def ours() -> None:
        captioned = list(captioner.caption(requests, sampling, batch_size=-(-args.rows // each)))
        if sum(len(result.captions) for result in captioned) != lengths.numel():
            raise RuntimeError("rewrites are missing")

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work.json"
        prompts = [captioner.prompt_ids(request.instruction) for request in requests]
        work.write_text(json.dumps({"prompts": prompts, "lengths": lengths.tolist()}))
        tokens = sum(map(len, prompts)) / len(prompts)
        print(
            f"{captioner.description}\n{len(prompts)} x {each} rewrites of {lengths.float().mean():.1f} tokens, "
            f"after prompts of {tokens:.0f} tokens; {args.dtype}, {args.rows} at a time",
            flush=True,
        )
        options = {
            "model": args.model,
            "work": str(work),
            "rows": args.rows,
            "device": args.device,
            "dtype": args.dtype,
        }
        with Peer(Path(sys.executable), "rewrite_peer.py", end=captioner.end_id, **options) as peer:
            cost, peer_cost = alternate(ours, peer, args.repeats, device=args.device)
    count = lengths.numel()
    print(
        json.dumps(
            {
                "case": args.case,
                "dtype": args.dtype,
                "device": args.device,
                "ratio": round(peer_cost.seconds / cost.seconds, 2),
                "rewrites_per_s": round(count / cost.seconds, 2),
                "peer_rewrites_per_s": round(count / peer_cost.seconds, 2),
                "prompt_tokens": round(tokens),
                "rewrite_tokens": round(float(lengths.float().mean()), 1),
                "mb": round(cost.peak / 1e6),
                "peer_mb": round(peer_cost.peak / 1e6),
            }
        )
    )


if __name__ == "__main__":
    main()
