"""Run the official trainer in its own environment, and record what its model and its loss receive.

This file imports nothing of ours. Its argument is a JSON object: `configs`, files of model configurations; `argv`, the
trainer's flags; `texts`, a file of texts, which are recognised by their tokens; and `trace`, the npz file to write.
For each step the trace has the pixels that the model received (`images`), the numbers of its texts (`texts`, -1 for a
text that is not in the file), and the arguments and values of the loss.
"""

import json
import sys
from collections import defaultdict

import numpy as np
import open_clip
import torch
from open_clip_train import main as trainer


def main() -> None:
    options = json.loads(sys.argv[1])
    for path in options["configs"]:
        open_clip.add_model_config(path)
    model_name = options["argv"][options["argv"].index("--model") + 1]
    texts = json.loads(open(options["texts"], encoding="utf-8").read())
    numbers = {
        tuple(tokens): number for number, tokens in enumerate(open_clip.get_tokenizer(model_name)(texts).tolist())
    }
    trace = defaultdict(list)

    def note_inputs(module, inputs):
        images, tokens = inputs
        trace["images"].append(images.numpy(force=True).copy())
        trace["texts"].append(np.array([numbers.get(tuple(row), -1) for row in tokens.tolist()]))

    create_model, create_loss = trainer.create_model_and_transforms, trainer.create_loss

    def create_watched_model(name, *args, **kwargs):
        created = create_model(name, *args, **kwargs)
        if name == model_name:
            created[0].register_forward_pre_hook(note_inputs)
        return created

    def create_watched_loss(args):
        loss = create_loss(args)
        trace["loss_class"].append(type(loss).__name__)

        def watched(**arguments):
            values = loss(**arguments)
            for name, value in {**arguments, **values}.items():
                if isinstance(value, torch.Tensor):
                    trace[name].append(value.detach().numpy(force=True).copy())
            return values

        return watched

    trainer.create_model_and_transforms, trainer.create_loss = create_watched_model, create_watched_loss
    trainer.main(options["argv"])
    np.savez(options["trace"], **{name: np.stack(values) for name, values in trace.items()})
    import torchvision
    import webdataset
    from PIL import __version__ as pillow

    print(
        json.dumps(
            {
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "pillow": pillow,
                "webdataset": webdataset.__version__,
                "open_clip": open_clip.__version__,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
