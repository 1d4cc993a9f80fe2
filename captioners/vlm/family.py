"""What a family of transformers' image-text-to-text models is asked: pictures, prompts, inputs, a step on the cache.

Dimensions: N pictures, H, W their sides, R rows (captions in flight), K = R / N captions of each, P tokens of the longest
prompt, n new tokens, t positions attended to, V vocabulary, S image tokens, D width.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.processing_utils import ProcessorMixin

from captioners.decoding.cache import CACHE
from captioners.safe_reading import in_bounds
from captioners.vlm.pictures import Preprocess

INSTRUCTION = "Describe this picture in one sentence."


def spans(length: int, sizes: Sequence[int]) -> list[int]:
    """How many of so many things are of each picture: one each, or as many as its size, in proportion, says."""
    return [1] * len(sizes) if length == len(sizes) else [size * length // sum(sizes) for size in sizes]


class Llava:
    """A family of models, here LLaVA's; the others, in `vlm_families.py`, override what differs.

    `vision` and `projector` name the first and the last module of the model that see each picture by itself, `language` and
    `decoder` those that see text, the latter with a cache, "" the model itself.
    Every picture takes the same number of tokens, so the prompt's ids are the same for all; but see `OwnAspect`.
    """

    vision, projector = "model.vision_tower", "model.multi_modal_projector"
    language, decoder = "model.language_model", ""
    instruction = INSTRUCTION  # what the prompt asks for unless told otherwise
    options: dict = {}  # of the image processor

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        self.model, self.processor, self.tokenizer = model, processor, processor.tokenizer
        self.config, self.text_config = model.config, model.config.get_text_config()

    def preprocess(self) -> Any:
        return Preprocess(self.processor.image_processor, self.options)

    def prompt(self, instruction: str) -> tuple[list[int], str]:
        """The ids of all that comes before a caption, the picture's included, and what the template then sets before its text."""
        content = [{"type": "image"}, {"type": "text", "text": instruction}][: 2 if instruction else 1]
        question = {"role": "user", "content": content}
        answer = {"role": "assistant", "content": [{"type": "text", "text": "\0"}]}
        render = self.processor.apply_chat_template  # a program of the folder's
        text, whole = in_bounds(lambda: [render([question], add_generation_prompt=True), render([question, answer])])
        whole = whole.partition("\0")[0]
        if (pictures := text.count(self.processor.image_token)) > 1:
            raise ValueError(f"its chat template makes {pictures} pictures of one")
        begun = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        inputs = self.processor(
            text=[text],
            images=[self.blank()],
            images_kwargs=self.options,
            text_kwargs={"add_special_tokens": not begun},
        )
        return list(map(int, inputs["input_ids"][0])), whole.removeprefix(text) if whole.startswith(text) else ""

    def blank(self) -> Image.Image:
        """A picture that takes as many tokens as any."""
        return Image.new("RGB", (64, 64))

    def fit(self, prompt: list[int], picture: Tensor) -> list[int]:
        """The prompt's ids, with as many of the picture's tokens as this one takes."""
        return prompt

    def size(self, picture: Tensor) -> int:
        """How many things of the same size the vision tower sees of it."""
        return 1

    def end_ids(self) -> list[int]:
        """The tokens that end a caption, that which is learnt first."""
        ends = self.model.get_submodule(self.decoder).generation_config.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        return sorted(ends, key=lambda token: token != self.tokenizer.eos_token_id)

    def image_token_id(self) -> int | None:
        return self.config.image_token_id

    def inputs(self, pictures: Sequence[Tensor], ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The model's inputs: pictures, ids (R, P or more) that start with their prompts, and which are no padding.

        The first K rows are of the first picture, and so on; it is given once for each.
        """
        pictures = [picture for picture in pictures for _ in range(len(ids) // len(pictures))]
        return {"input_ids": ids, "attention_mask": mask, **self.pixels(pictures)}

    def pixels(self, pictures: Sequence[Tensor]) -> dict[str, Tensor]:
        """What the model takes of pictures."""
        return {"pixel_values": torch.stack(pictures).to(self.model.dtype)}

    def forward(self, inputs: dict[str, Tensor], **options) -> Tensor:
        """Logits (R, tokens, V) of a pass over everything."""
        return self.model(**inputs, **options).logits

    def states(self, output: Any) -> Tensor:
        """What the vision tower says (pictures or their parts, ..., D)."""
        return output.last_hidden_state

    @contextlib.contextmanager
    def encoding_once(self, pictures: Sequence[Tensor], captions: int) -> Iterator[None]:
        """Within it a picture that is given once for each of its captions is encoded once, and what comes of it is repeated."""
        sizes = [self.size(picture) for picture in pictures]

        def first(module: nn.Module, args: tuple, options: dict) -> tuple[tuple, dict]:
            return tuple(map(one_of_each, args)), {name: one_of_each(value) for name, value in options.items()}

        def one_of_each(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return torch.cat(
                value.split(spans(len(value), [size for size in sizes for _ in range(captions)]))[::captions]
            )

        def again(value: Any) -> Any:
            if isinstance(value, Tensor):
                return torch.cat([part for part in value.split(spans(len(value), sizes)) for _ in range(captions)])
            if isinstance(value, dict):  # a ModelOutput
                for name, one in value.items():
                    value[name] = again(one)
                return value
            return [again(one) for one in value]

        hooks = (
            self.model.get_submodule(self.vision).register_forward_pre_hook(first, with_kwargs=True),
            self.model.get_submodule(self.projector).register_forward_hook(lambda module, args, output: again(output)),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def cache(self) -> Cache:
        return DynamicCache()

    def next_positions(self, prompts: Tensor) -> Tensor:
        """Of the tokens after prompts of so many (N,), once the model has seen them."""
        return prompts

    def steps_are_alike(self) -> bool:
        """Whether steps do the same at any positions, as in a CUDA graph they must; rotary embeddings that stretch do not."""
        rope = getattr(self.text_config, "rope_parameters", None) or {}
        return rope.get("rope_type") not in ("dynamic", "longrope")

    def step(self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        """Logits (R, n, V) of what follows tokens (R, n) at positions (R, n); `mask` (R, 1, n, t) is added to the scores."""
        decoder = self.model.get_submodule(self.decoder)
        return decoder(
            input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=True, **{CACHE: cache}
        ).logits
