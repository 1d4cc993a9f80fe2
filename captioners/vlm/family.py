"""The interface to a family of transformers' image-text-to-text models: pictures, prompts, inputs, a step on the cache.

Dimensions: N pictures, H, W their sides, R rows (captions in flight), K = R / N captions of each, P tokens of the longest
prompt, n new tokens, t positions attended to, V vocabulary, S image tokens, D width.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.processing_utils import ProcessorMixin

from captioners.decoding.cache import CACHE
from captioners.decoding.special_tokens import end_ids
from captioners.safe_reading import in_bounds
from captioners.vlm.pictures import Preprocess

INSTRUCTION = "Describe this picture in one sentence."
SMALL = Image.new("RGB", (64, 64))

INSTRUCTED, ANSWERED = "\1", "\0"  # what a chat template is given in the place of an instruction, and of a caption


class Prompt(NamedTuple):
    """The tokens before a caption.

    `ids` hold the picture's placeholders, too; `lead` is what a chat template sets before the caption's text; `asked` are the ids that an
    encoder sees, where the captions come of a decoder with ids of its own.
    """

    ids: list[int]
    lead: str = ""
    asked: Sequence[int] = ()


def spans(length: int, sizes: Sequence[int]) -> list[int]:
    """How many of so many things are of each picture: one each, or as many as its size, in proportion, says."""
    return [1] * len(sizes) if length == len(sizes) else [size * length // sum(sizes) for size in sizes]


class Llava:
    """A family of models, here LLaVA's; the others, in `vlm_families.py`, override what differs.

    `vision` and `projector` name the first and the last module of the model that see each picture by itself, `language` and
    `decoder` those that see text, the latter with a cache, "" the model itself.
    Every picture takes the same number of tokens in a prompt; but see `OwnAspect`.
    """

    vision, projector = "model.vision_tower", "model.multi_modal_projector"
    language, decoder = "model.language_model", ""
    instruction = INSTRUCTION  # what the prompt asks for unless told otherwise
    options: dict = {}  # of the image processor
    model: Any  # a PreTrainedModel, and its processor, with the parts that are the family's own
    processor: Any

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        self.model, self.processor, self.tokenizer = model, processor, processor.tokenizer
        self.config, self.text_config = model.config, model.config.get_text_config()
        self.frame = functools.cache(self._frame)

    def preprocess(self) -> Any:
        return Preprocess(self.processor.image_processor, self.options)

    def prompt(self, instruction: str) -> Prompt:
        """The prompt that asks so, with the placeholders of a picture of 64 x 64 pixels."""
        text, lead = self.frame(bool(instruction))
        text = text.replace(INSTRUCTED, instruction)
        if (pictures := text.count(self.processor.image_token)) > 1:
            raise ValueError(f"its chat template makes {pictures} pictures of one")
        begun = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        inputs = self.processor(
            text=[text],
            images=[SMALL],
            images_kwargs=self.options,
            text_kwargs={"add_special_tokens": not begun},
        )
        return Prompt(list(map(int, inputs["input_ids"][0])), lead)

    def _frame(self, instructed: bool) -> tuple[str, str]:
        """The chat template's text round an instruction, or round none, and what it then sets before a caption.

        The template is a program of the folder's: it runs once, and never sees what others have written.
        """
        content = [{"type": "image"}, {"type": "text", "text": INSTRUCTED}][: 2 if instructed else 1]
        question = {"role": "user", "content": content}
        answer = {"role": "assistant", "content": [{"type": "text", "text": ANSWERED}]}
        render = self.processor.apply_chat_template
        text, whole = in_bounds(lambda: [render([question], add_generation_prompt=True), render([question, answer])])
        whole = whole.partition(ANSWERED)[0]
        return text, whole.removeprefix(text) if whole.startswith(text) else ""

    def blank(self) -> Image.Image:
        """A picture that takes as many tokens as any."""
        return SMALL

    def fit(self, prompt: Prompt, picture: Tensor) -> Prompt:
        """The prompt with as many of the picture's placeholders as this one takes."""
        return prompt

    def size(self, picture: Tensor) -> int:
        """How many things of the same size the vision tower sees of it."""
        return 1

    def end_ids(self) -> list[int]:
        """The tokens that end a caption, that which is learnt first."""
        return end_ids(self.tokenizer, self.model.get_submodule(self.decoder).generation_config.eos_token_id)

    def image_token_id(self) -> int | None:
        return self.config.image_token_id

    def inputs(
        self, pictures: Sequence[Tensor], prompts: Sequence[Prompt], ids: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        """The model's inputs: pictures, the rows' prompts, ids (R, P or more) that start with them, and which are no padding.

        The first K rows are of the first picture, and so on; it is given once for each.
        """
        pictures = [picture for picture in pictures for _ in range(len(ids) // len(pictures))]
        return {"input_ids": ids, "attention_mask": mask, **self.pixels(pictures)}

    def pixels(self, pictures: Sequence[Tensor]) -> dict[str, Tensor]:
        """The pictures as the model's inputs."""
        return {"pixel_values": torch.stack(list(pictures)).to(self.model.dtype)}

    def forward(self, inputs: dict[str, Tensor], **options) -> Tensor:
        """Logits (R, tokens, V) of a pass over everything."""
        return self.model(**inputs, **options).logits

    def states(self, output: Any) -> Tensor:
        """The vision tower's states (pictures or their parts, ..., D)."""
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
                for name, part in value.items():
                    value[name] = again(part)
                return value
            return [again(part) for part in value]

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
        """The positions of the tokens that follow prompts of these lengths (N,), once the model has seen them."""
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
