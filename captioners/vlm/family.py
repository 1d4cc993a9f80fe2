"""The interface to a family of transformers' image-text-to-text models: pictures, prompts, inputs, decoding steps.

Dimensions: N pictures, H, W their height and width, R rows (captions in flight), K = R / N captions of each, P tokens
of the longest prompt, n new tokens, t positions attended to, V vocabulary, D width of the vision tower.
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
from captioners.replies import with_closed_thoughts
from captioners.safe_reading import in_bounds
from captioners.vlm.pictures import Preprocess

INSTRUCTION = "Describe this picture in one sentence."
SMALL = Image.new("RGB", (64, 64))

# Placeholders for an instruction and for a caption, which a chat template is given in their place.
INSTRUCTION_MARK, CAPTION_MARK = "\1", "\0"


class Prompt(NamedTuple):
    """The tokens before a caption."""

    ids: list[int]  # including the placeholders of the picture
    lead: str = ""  # text that the chat template puts before the caption's text
    encoder_ids: Sequence[int] = ()  # for an encoder-decoder: the encoder's input; `ids` is then the decoder's
    tail: str = ""  # text that the chat template puts after the caption's text


def spans(length: int, sizes: Sequence[int]) -> list[int]:
    """Divide `length` items among pictures: one each if there are as many as pictures, else in proportion to sizes."""
    return [1] * len(sizes) if length == len(sizes) else [size * length // sum(sizes) for size in sizes]


def _in_order(module: nn.Module, args: tuple, output: Any) -> Any:
    """Store a vision tower's first states (N, tokens, D) token by token; a hook.

    A convolution leaves them channel by channel. All states after them would be, too, and each norm would copy them.
    """
    return output.contiguous() if isinstance(output, Tensor) else output


class Llava:
    """The LLaVA family, which is the base class of all families: those in `families.py` override what differs.

    All pictures take the same number of tokens in a prompt; for exceptions see `OwnAspect`.

    vision, projector: names of the first and the last module that process each picture by itself.
    language: name of the module whose layers attend to text.
    decoder: name of the module that runs decoding steps with a cache; "" is the whole model.
    """

    vision, projector = "model.vision_tower", "model.multi_modal_projector"
    language, decoder = "model.language_model", ""
    instruction = INSTRUCTION  # the default instruction
    options: dict = {}  # options of the image processor
    model: Any  # a PreTrainedModel; Any, because its parts depend on the family
    processor: Any  # a ProcessorMixin

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        self.model, self.processor, self.tokenizer = model, processor, processor.tokenizer
        self.config, self.text_config = model.config, model.config.get_text_config()
        self.render_template = functools.cache(self._render_template)
        for name, module in model.get_submodule(self.vision).named_modules():
            if name.rpartition(".")[2] == "embeddings":
                module.register_forward_hook(_in_order)

    def preprocess(self) -> Any:
        """The transform from a decoded picture to what `pixels` takes."""
        return Preprocess(self.processor.image_processor, self.options)

    def prompt(self, instruction: str) -> Prompt:
        """The prompt with this instruction, and with the placeholders of a picture of 64 x 64 pixels."""
        text, lead, tail = self.render_template(bool(instruction))
        text = text.replace(INSTRUCTION_MARK, instruction)
        if (pictures := text.count(self.processor.image_token)) > 1:
            raise ValueError(f"its chat template turns one picture into {pictures}")
        has_start_token = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        inputs = self.processor(
            text=[text],
            images=[SMALL],
            images_kwargs=self.options,
            text_kwargs={"add_special_tokens": not has_start_token},
        )
        return Prompt(list(map(int, inputs["input_ids"][0])), lead, tail=tail)

    def _render_template(self, has_instruction: bool) -> tuple[str, str, str]:
        """The chat template's text with the mark of an instruction, or without one, and its texts around a caption.

        The template is a program from the model's folder. It runs only once per case, and never gets an instruction or
        caption as input.
        """
        content = [{"type": "image"}]
        if has_instruction:
            content.append({"type": "text", "text": INSTRUCTION_MARK})
        question = {"role": "user", "content": content}
        answer = {"role": "assistant", "content": [{"type": "text", "text": CAPTION_MARK}]}
        render = self.processor.apply_chat_template
        text, chat = in_bounds(lambda: [render([question], add_generation_prompt=True), render([question, answer])])
        text = with_closed_thoughts(text)
        before_caption, _, tail = chat.partition(CAPTION_MARK)
        lead = before_caption.removeprefix(text) if before_caption.startswith(text) else ""
        return text, lead, tail

    def blank(self) -> Image.Image:
        """A picture that takes as many tokens as any picture can take."""
        return SMALL

    def fit(self, prompt: Prompt, picture: Tensor) -> Prompt:
        """The prompt with the number of placeholders that this picture takes."""
        return prompt

    def size(self, picture: Tensor) -> int:
        """The number of equal parts, such as tiles or patches, of the picture that the vision tower processes."""
        return 1

    def end_ids(self) -> list[int]:
        """The tokens that end a caption; the first is the one that training uses if no template ends an answer."""
        return end_ids(self.tokenizer, self.model.get_submodule(self.decoder).generation_config.eos_token_id)

    def image_token_id(self) -> int | None:
        """The placeholder of an image token, or None if prompts contain none."""
        return self.config.image_token_id

    def inputs(
        self, pictures: Sequence[Tensor], prompts: Sequence[Prompt], ids: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        """The inputs of the model's forward pass.

        pictures: N of them; the first K rows belong to the first picture, and so on. They are repeated for each row.
        prompts: of each row. ids: (R, P or more), which start with the prompts. mask: 1 for tokens, 0 for padding.
        """
        pictures = [picture for picture in pictures for _ in range(len(ids) // len(pictures))]
        return {"input_ids": ids, "attention_mask": mask, **self.pixels(pictures)}

    def pixels(self, pictures: Sequence[Tensor]) -> dict[str, Tensor]:
        """The pictures as inputs of the model's forward pass."""
        return {"pixel_values": torch.stack(list(pictures)).to(self.model.dtype)}

    def forward(self, inputs: dict[str, Tensor], **options) -> Tensor:
        """The logits (R, tokens, V) of a forward pass over pictures and tokens."""
        return self.model(**inputs, **options).logits

    def states(self, output: Any) -> Tensor:
        """The states (pictures or their parts, ..., D) in the vision tower's output."""
        return output.last_hidden_state

    @contextlib.contextmanager
    def encoding_once(self, pictures: Sequence[Tensor], captions: int) -> Iterator[None]:
        """A context in which a picture that is repeated for each of its captions is encoded once.

        The vision module gets each picture once, and the projector's output is repeated for each caption.
        """
        sizes = [self.size(picture) for picture in pictures]
        repeated_sizes = [size for size in sizes for _ in range(captions)]

        def deduplicate(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return torch.cat(value.split(spans(len(value), repeated_sizes))[::captions])

        def deduplicate_inputs(module: nn.Module, args: tuple, options: dict) -> tuple[tuple, dict]:
            return tuple(map(deduplicate, args)), {name: deduplicate(value) for name, value in options.items()}

        def repeat(value: Any) -> Any:
            if isinstance(value, Tensor):
                return torch.cat([part for part in value.split(spans(len(value), sizes)) for _ in range(captions)])
            if isinstance(value, dict):  # a ModelOutput
                for name, part in value.items():
                    value[name] = repeat(part)
                return value
            return [repeat(part) for part in value]

        vision, projector = (self.model.get_submodule(name) for name in (self.vision, self.projector))
        hooks = (
            vision.register_forward_pre_hook(deduplicate_inputs, with_kwargs=True),
            projector.register_forward_hook(lambda module, args, output: repeat(output)),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def cache(self) -> Cache:
        """An empty cache for the model's keys and values."""
        return DynamicCache()

    def next_positions(self, prompts: Tensor) -> Tensor:
        """The positions (N,) of the tokens after prompts of these lengths (N,), which the model has just read."""
        return prompts

    def steps_are_alike(self) -> bool:
        """Whether steps do the same operations at all positions, as a CUDA graph requires.

        Rotary embeddings that depend on the length do not.
        """
        rope = getattr(self.text_config, "rope_parameters", None) or {}
        return rope.get("rope_type") not in ("dynamic", "longrope")

    def step(self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        """Feed tokens (R, n) at positions (R, n); return the logits (R, n, V) of the token that follows each.

        mask: (R, 1, n, t), added to the scores.
        """
        decoder = self.model.get_submodule(self.decoder)
        return decoder(
            input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=True, **{CACHE: cache}
        ).logits
