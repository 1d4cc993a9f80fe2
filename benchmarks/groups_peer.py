"""The peer of `parity.py --case groups`, in its own environment: diverse beam search of transformers 4.49."""

import json
import sys

import torch
from transformers import GPT2LMHeadModel, __version__


def main() -> None:
    model = GPT2LMHeadModel.from_pretrained(json.loads(sys.argv[1])["model"]).eval()
    print(json.dumps({"transformers": __version__}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        prompt, end = torch.tensor([question["prefix"]]), question["end"]
        groups = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            num_return_sequences=question["num_beams"],
            min_length=5,
            max_length=question["max_length"],
            suppress_tokens=question["never"],
            forced_eos_token_id=end,
            **{
                name: question[name]
                for name in ("num_beams", "num_beam_groups", "diversity_penalty", "length_penalty")
            },
        )
        rows = [[*row, end] for row in groups.tolist()]
        print(json.dumps({"tokens": [row[: row.index(end) + 1] for row in rows]}), flush=True)


if __name__ == "__main__":
    main()
