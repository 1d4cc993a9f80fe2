"""The peer of `parity.py --case tokenizer`, in its own environment: open_clip's tokenizer of a folder under
transformers 4.49.
"""

import json
import sys

import open_clip
import transformers


def main() -> None:
    tokenizer = open_clip.get_tokenizer(f"local-dir:{json.loads(sys.argv[1])['model']}")
    print(json.dumps({"transformers": transformers.__version__}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"tokens": tokenizer(json.loads(line)).tolist()}), flush=True)


if __name__ == "__main__":
    main()
