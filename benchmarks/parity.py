"""Captions compared token by token with those of the peers: `python -m benchmarks.parity --case greedy-30`.

The last line of the output is a JSON object; `equal` is the share of captions with the same tokens.

`greedy-30`, `greedy-77`: our greedy captions of random pictures, compared with open_clip's
`generate(generation_type="top_k", top_k=1)` from the same scrambled weights of coca_ViT-B-32. `groups`: our diverse
beam groups, compared with those of transformers 4.49 over the logits of the same small language model. Later versions
of transformers have no beam groups. `bf16`: where our greedy captions in bfloat16, or in `--dtype` on `--device`,
first differ from those in float32 on the CPU. `tokenizer`: the tokens of coca_tiny's tokenizer for captions and scraps
of text, under transformers 4.49 and ours.
"""

import argparse
import itertools
import json
import tempfile
from pathlib import Path

import open_clip
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.same_tokens import compare, scrambled
from benchmarks.side_by_side import CLIP_PINS, Peer, peer_python
from captioners.base import Request, SamplingConfig
from captioners.coca.captioner import CoCaCaptioner
from captioners.decoding.beam import BeamSearch
from captioners.decoding.rows import Rules
from captioners.load import load_captioner
from captioners.resolve import SHIPPED
from captioners.weights import DTYPES
from imagetext.sample import decode_image
from imagetext.sources import read_samples

PICTURES = 16
PAD, START, END, NEVER = 0, 1, 2, (0, 1)  # tokens of the small language model; NEVER may not be generated


def greedy(captioner: CoCaCaptioner, pictures: torch.Tensor, limit: int) -> list[list[int]]:
    """Tokens of greedy captions, with start and end."""
    captioner.decode = list  # gives the tokens in place of their text
    sampling = SamplingConfig(strategy="greedy", max_length=limit)
    captioned = captioner.caption([Request(str(i), picture) for i, picture in enumerate(pictures)], sampling)
    return [result.captions[0].text for result in captioned]


def greedy_case(limit: int) -> dict:
    captioner = scrambled("coca_ViT-B-32")
    pictures = torch.randn(PICTURES, 3, 224, 224)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        captioner.save(folder / "model", "peer")
        torch.save(pictures, folder / "pictures.pt")
        options = {"model": str(folder / "model"), "pictures": str(folder / "pictures.pt")}
        with Peer(peer_python("open_clip", CLIP_PINS), "decoding_peer.py", **options) as peer:
            theirs = peer.ask({"greedy": limit})["tokens"]
    ours = greedy(captioner, pictures, limit)
    end = captioner.end_id
    theirs = [tokens[: tokens.index(end) + 1] if end in tokens else tokens for tokens in theirs]
    return {**compare(ours, theirs), "lengths": sorted({len(tokens) for tokens in ours})}


def other_numbers(trained: bool, device: str, dtype: str) -> dict:
    if trained:
        captioner = load_captioner("coca_tiny")
        samples = itertools.chain.from_iterable(read_samples("scenes:test,n=500,level=2"))
        pictures = torch.stack([captioner.preprocess(decode_image(sample.image)) for sample in samples])
    else:
        captioner, pictures = scrambled("coca_ViT-B-32"), torch.randn(PICTURES, 3, 224, 224)
    full = greedy(captioner, pictures, 30)
    captioner.model.to(device, DTYPES[dtype])
    return compare(greedy(captioner, pictures, 30), full)


def tokenizer_case() -> dict:
    shards = [
        *read_samples("scenes:val,n=300,level=4,size=16"),
        *read_samples("scenes:val,n=300,level=2,size=16,captions=alt"),
    ]
    texts = [caption for shard in shards for sample in shard for caption in sample.captions]
    texts += [
        "",
        "  two  blanks\n",
        "caf\u00e9 \u2014 \u201cna\u00efve\u201d",
        "\u6f22\u5b57 \U0001f600",
        "IMG_20413.JPG",
        "a" * 200,
    ]
    folder = SHIPPED / "coca_tiny"
    with Peer(peer_python("open_clip", CLIP_PINS), "tokenizer_peer.py", model=str(folder)) as peer:
        return compare(open_clip.get_tokenizer(f"local-dir:{folder}")(texts).tolist(), peer.ask(texts)["tokens"])


def groups_case(runs: int = 40) -> dict:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=60,
        n_positions=32,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():  # makes the end token more probable, so that captions end at many lengths
        bias = model.transformer.ln_f.bias.normal_()
        model.lm_head.weight[END] += 5 * bias / (bias @ bias)
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with Peer(peer_python("open_clip", CLIP_PINS), "groups_peer.py", model=folder) as peer:
            for run in range(runs):
                prefix, groups, beams = [START, 10 + run], (2, 3)[run % 2], (2, 1, 4)[run % 3]
                settings = {
                    "num_beams": groups * beams,
                    "num_beam_groups": groups,
                    "diversity_penalty": (0.5, 2.0)[run % 2],
                    "length_penalty": (1.0, 0.0, 2.0)[run % 3],
                }
                theirs += peer.ask({"prefix": prefix, "never": NEVER, "end": END, "max_length": 16, **settings})[
                    "tokens"
                ]
                ours += diverse(
                    model, prefix, SamplingConfig(strategy="beam", num_captions=groups * beams, **settings)
                )
    return {**compare(ours, theirs), "lengths": sorted({len(tokens) for tokens in ours})}


class PlainRows:
    """Rows without a cache: they keep their tokens and compute everything again at each step."""

    def __init__(self, model: GPT2LMHeadModel):
        self.model, self.tokens = model, torch.zeros(1, 0, dtype=torch.long)

    def extend(self, tokens: torch.Tensor) -> torch.Tensor:
        self.tokens = torch.cat([self.tokens, tokens], dim=1)
        return self.model(self.tokens).logits[:, -tokens.shape[1] :]

    def keep(self, rows: torch.Tensor) -> None:
        self.tokens = self.tokens[rows]


def diverse(model: GPT2LMHeadModel, prefix: list[int], sampling: SamplingConfig) -> list[list[int]]:
    rules = Rules(sampling, torch.tensor(prefix), torch.tensor(NEVER), END, max_length=16)
    [groups] = BeamSearch(
        lambda requests: (torch.zeros(1, 1), PlainRows(model)), [Request("", None)], rules, batch_size=1
    )
    return [caption.tokens for caption in groups.captions]


CASES = {
    "greedy-30": lambda _: greedy_case(30),
    "greedy-77": lambda _: greedy_case(77),
    "groups": lambda _: groups_case(),
    "bf16": lambda args: other_numbers(False, args.device, args.dtype),
    "bf16-trained": lambda args: other_numbers(True, args.device, args.dtype),
    "tokenizer": lambda _: tokenizer_case(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--device", default="cpu", help="device of the cases bf16: cpu, cuda, …")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="dtype of the cases bf16")
    args = parser.parse_args()
    print(json.dumps({"case": args.case, **CASES[args.case](args)}))


if __name__ == "__main__":
    main()
