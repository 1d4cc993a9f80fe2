"""Rewrites/s of a local language model against transformers' `generate`: `python -m benchmarks.rewrite --case laclip`.

The model is the folder that CAPSMITH_LM names, the captions are COCO's, in CAPSMITH_DATA. `laclip`: three pairs drawn
for each caption, completed by a base model, temperature 0.9, top-p 0.95, one rewrite of at most 77 tokens, as LaCLIP
has it. `shared`: a chat, with one long instruction for all, and two rewrites of each caption.

Peer: the same model, prompts and dtype in a process of its own, in transformers' best form: prompts sorted by length,
in left-padded batches of as many rows as we have in flight, one call for several rewrites of a prompt
(`num_return_sequences`). Equal work: a rewrite ends at a length that is drawn from COCO's captions and prescribed to
both; a batch of the peer's goes on until its last row has ended. The last line is one JSON object.
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
    "You rewrite captions of photographs. Say what the caption says in other words, in one plain English sentence. Keep every number, "
    "colour and name. Do not add objects, people, places or actions that the caption does not name, and do not guess at moods, brands "
    "or the time of day. Do not begin with 'This image' or 'A photo of'. Do not use lists, quotation marks, brackets or line breaks. If the "
    "caption is not a sentence, make it one. If words are misspelt, correct them. If it is in another language, translate it. "
)
TEMPLATE = "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}<start_of_turn>model\n"


def completed(caption: str, drawn: random.Random) -> str:
    pairs = "\n".join(f"{source} => {target}" for source, target in drawn.sample(PAIRS, 3))
    return f"rewrite image captions\n{pairs}\n{caption} =>"


def asked(caption: str, drawn: random.Random) -> str:
    examples = "\n".join(f"Caption: {source}\nRewritten: {target}" for source, target in PAIRS)
    return f"{RULES}\n{examples}\nCaption: {caption}"


CASES = {"laclip": (completed, 1), "shared": (asked, 2)}  # the prompt, and rewrites of each caption


def ending_at(lengths: torch.Tensor) -> Callable:
    """A `draw.choose_next` under which each rewrite ends with its `lengths[prompt, rewrite]`-th token after the
    prompt.
    """
    choose_next = draw.choose_next

    def choose(flight: draw.Flight, logits: torch.Tensor, rules: Rules) -> tuple[torch.Tensor, torch.Tensor]:
        ends = flight.length == lengths[flight.picture % len(lengths), flight.caption]  # the start token counts
        logits[:, rules.end_id] = torch.where(ends, 1e4, -1e4).to(logits.dtype)
        return choose_next(flight, logits, rules)

    return choose


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--model", default=os.environ.get("CAPSMITH_LM"), help="a folder; what CAPSMITH_LM names")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of both")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, …; of both")
    parser.add_argument("--captions", type=int, default=64, help="of a turn")
    parser.add_argument("--rows", type=int, default=32, help="rewrites in flight, of both")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    args = parser.parse_args()
    if args.model is None:
        parser.error("--model, or CAPSMITH_LM, names no folder")

    prompt_of, each = CASES[args.case]
    captioner, drawn = load_lm(args.model, device=args.device, dtype=args.dtype), random.Random(0)
    if args.case == "shared" and not captioner.chats:
        captioner.tokenizer.chat_template = TEMPLATE
        captioner = LMCaptioner(captioner.model, captioner.tokenizer, name="lm", weights_sha256="", source=args.model)
    pictures = json.loads((DATA / "coco1000.json").read_text(encoding="utf-8"))
    captions = [" ".join(picture["references"][0].split()) for picture in pictures[: args.captions]]
    requests = [Request(str(i), None, prompt_of(caption, drawn)) for i, caption in enumerate(captions)]
    others = [picture["references"][1] for picture in pictures]
    lengths = torch.tensor(
        [
            [min(len(captioner.encode_text_ids(text)) - 1, LIMIT) for text in drawn.sample(others, each)]
            for _ in requests
        ]
    )  # (captions, each), the end token included
    sampling = SamplingConfig(num_captions=each, temperature=0.9, top_p=0.95, max_length=LIMIT + 1, min_length=0)
    draw.choose_next = ending_at(lengths.to(args.device))

    def ours() -> None:
        found = list(captioner.caption(requests, sampling, batch_size=-(-args.rows // each)))
        if sum(len(one.captions) for one in found) != lengths.numel():
            raise RuntimeError("rewrites are missing")

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work.json"
        prompts = [captioner.prompt_ids(request.instruction) for request in requests]
        work.write_text(json.dumps({"prompts": prompts, "lengths": lengths.tolist()}))
        tokens = sum(map(len, prompts)) / len(prompts)
        print(
            f"{captioner.description}\n{len(prompts)} x {each} rewrites of {lengths.float().mean():.1f} tokens, after prompts"
        )
        print(f"of {tokens:.0f} tokens; {args.dtype}, {args.rows} in flight", flush=True)
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
