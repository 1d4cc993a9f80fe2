"""The peer of `rewrite.py`: transformers' `generate` on the same prompts, sorted by length, in left-padded batches.

This file imports nothing of ours. Its argument is a JSON object: `model`, a folder; `work`, a file of `prompts` (lists
of token ids) and `lengths` (for each prompt, the numbers of tokens of its rewrites); `rows`, the rows decoded at a
time; `device`; `dtype`; and `end`, the end token. It answers each line that it is sent with the cost of the work.
"""

import json
import sys

import torch
import transformers
from decoding_peer import DTYPES, Cost
from transformers import AutoModelForCausalLM, LogitsProcessor


class EndingAt(LogitsProcessor):
    """Makes each row end with its `lengths[row]`-th token after the prompt."""

    def __init__(self, prompt: int, lengths: torch.Tensor, end: int):
        self.prompt, self.lengths, self.end = prompt, lengths, end

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ends = ids.shape[1] - self.prompt + 1 >= self.lengths
        scores[:, self.end] = torch.where(ends, 1e4, -1e4).to(scores.dtype)
        return scores


@torch.no_grad()
def rewrite(model: torch.nn.Module, work: dict, options: dict) -> None:
    each, device = len(work["lengths"][0]), options["device"]
    order = sorted(range(len(work["prompts"])), key=lambda i: len(work["prompts"][i]), reverse=True)
    size = max(1, options["rows"] // each)
    for first in range(0, len(order), size):
        batch = order[first : first + size]
        longest = max(len(work["prompts"][i]) for i in batch)
        prompts = [work["prompts"][i] for i in batch]
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        lengths = torch.tensor([length for i in batch for length in work["lengths"][i]], device=device)
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=0.9,
            top_p=0.95,
            top_k=0,
            num_return_sequences=each,
            max_new_tokens=int(lengths.max()),
            eos_token_id=options["end"],
            pad_token_id=options["end"],
            logits_processor=[EndingAt(longest, lengths, options["end"])],
        )


def main() -> None:
    options = json.loads(sys.argv[1])
    with open(options["work"]) as file:
        work = json.load(file)
    model = AutoModelForCausalLM.from_pretrained(options["model"], dtype=DTYPES[options["dtype"]])
    model = model.to(options["device"]).eval()
    warm_up = {name: values[: max(1, options["rows"] // 4)] for name, values in work.items()}
    print(json.dumps({"transformers": transformers.__version__}), flush=True)
    for _ in sys.stdin:
        rewrite(model, warm_up, options)
        with Cost(options["device"]) as cost:
            rewrite(model, work, options)
        print(json.dumps(cost.found), flush=True)


if __name__ == "__main__":
    main()
