"""Where transformers' families of image-text-to-text models differ: pictures, prompts, inputs, a step on the cache.

Dimensions: N pictures, H, W their sides, R rows (captions in flight), K = R / N captions of each, P tokens of the prompt,
n new tokens, t positions attended to, V vocabulary, S image tokens, D width.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.processing_utils import ProcessorMixin

INSTRUCTION = "Describe this picture in one sentence."


class Preprocess:
    """A decoded RGB picture to (3, H, W), as the image processor has it with these options; holds no model, for workers' sake."""

    def __init__(self, image_processor: Any, options: dict):
        self.image_processor, self.options = image_processor, options

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = self.image_processor(images=image, return_tensors="pt", **self.options)["pixel_values"]
        return pixels.reshape(-1, *pixels.shape[-3:])[0]


class PreprocessSquare:
    """A decoded RGB picture to (3, side, side), normalised, whatever its shape."""

    def __init__(self, image_processor: Any, side: int):
        self.side = side
        self.mean, self.std = (torch.tensor(of)[:, None, None] for of in (image_processor.image_mean, image_processor.image_std))

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = np.array(image.resize((self.side, self.side), Image.Resampling.BICUBIC), dtype=np.float32)
        return (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - self.mean) / self.std


def _repeated(value: Tensor, parts: int, times: int) -> Tensor:
    """A tensor (parts * n, ...) with each of its parts so many times in turn: (parts * times * n, ...)."""
    return value.unflatten(0, (parts, -1)).repeat_interleave(times, 0).flatten(0, 1)


class Llava:
    """A family of models, here LLaVA's; the others override what differs.

    `vision` and `projector` name the first and the last module of the model that see each picture by itself, `language` and
    `decoder` those that see text, the latter with a cache, "" the model itself.
    Every picture takes the same number of tokens, so the prompt's ids are the same for all.
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
        content = [{"type": "image"}, {"type": "text", "text": instruction}][:2 if instruction else 1]
        question = {"role": "user", "content": content}
        answer = {"role": "assistant", "content": [{"type": "text", "text": "\0"}]}
        text = self.processor.apply_chat_template([question], add_generation_prompt=True)
        whole = self.processor.apply_chat_template([question, answer]).partition("\0")[0]
        begun = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        inputs = self.processor(text=[text], images=[self.blank()], images_kwargs=self.options,
                                text_kwargs={"add_special_tokens": not begun})
        return list(map(int, inputs["input_ids"][0])), whole.removeprefix(text) if whole.startswith(text) else ""

    def blank(self) -> Image.Image:
        """A picture, to count the tokens of one."""
        return Image.new("RGB", (64, 64))

    def end_ids(self) -> list[int]:
        """The tokens that end a caption, that which is learnt first."""
        ends = self.model.get_submodule(self.decoder).generation_config.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        return sorted(ends, key=lambda token: token != self.tokenizer.eos_token_id)

    def image_token_id(self) -> int | None:
        return self.config.image_token_id

    def inputs(self, pictures: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The model's inputs: pictures (N, 3, H, W), ids (R, P or more) that start with the prompt, and which are no padding.

        The first K rows are of the first picture, and so on; it is given once for each.
        """
        pixels = pictures.repeat_interleave(len(ids) // len(pictures), 0)
        return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}

    def forward(self, inputs: dict[str, Tensor], **options) -> Tensor:
        """Logits (R, tokens, V) of a pass over everything."""
        return self.model(**inputs, **options).logits

    @contextlib.contextmanager
    def encoding_once(self, pictures: int, captions: int) -> Iterator[None]:
        """Within it a picture that is given once for each of its captions is encoded once, and what comes of it is repeated."""
        def first(module: nn.Module, args: tuple, options: dict) -> tuple[tuple, dict]:
            return tuple(map(one_of_each, args)), {name: one_of_each(value) for name, value in options.items()}

        def one_of_each(value: Any) -> Any:
            return value.unflatten(0, (pictures, captions, -1))[:, 0].flatten(0, 1) if isinstance(value, Tensor) else value

        def again(module: nn.Module, args: tuple, output: Any) -> Any:
            if isinstance(output, Tensor):
                return _repeated(output, pictures, captions)
            for name, value in output.items():
                output[name] = _repeated(value, pictures, captions)
            return output

        hooks = (self.model.get_submodule(self.vision).register_forward_pre_hook(first, with_kwargs=True),
                 self.model.get_submodule(self.projector).register_forward_hook(again))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def cache(self) -> Cache:
        return DynamicCache()

    def next_position(self, prompt: int) -> int:
        """Of the token after a prompt of so many, once the model has seen it."""
        return prompt

    def steps_are_alike(self) -> bool:
        """Whether steps do the same at any positions, as in a CUDA graph they must; rotary embeddings that stretch do not."""
        rope = getattr(self.text_config, "rope_parameters", None) or {}
        return rope.get("rope_type") not in ("dynamic", "longrope")

    def step(self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        """Logits (R, n, V) of what follows tokens (R, n) at positions (R, n); `mask` (R, 1, n, t) is added to the scores."""
        decoder = self.model.get_submodule(self.decoder)
        return decoder(input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache,
                       use_cache=True).logits


class Idefics3(Llava):
    """Idefics3 and SmolVLM, with the whole picture in one square tile."""

    vision, projector, language = "model.vision_model", "model.connector", "model.text_model"
    options = {"do_image_splitting": False, "do_resize": False}  # the square comes all the same

    def inputs(self, pictures: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return super().inputs(pictures[:, None], ids, mask)  # (N, tiles, 3, H, W)


class QwenVL(Llava):
    """Qwen2-VL and Qwen2.5-VL, with every picture a square of the same side."""

    vision = projector = "model.visual"
    options = {"do_resize": False}
    side = 448  # at most; 256 image tokens of 28 x 28 pixels

    def preprocess(self) -> PreprocessSquare:
        return PreprocessSquare(self.processor.image_processor, self.blank().width)

    def blank(self) -> Image.Image:
        processor = self.processor.image_processor
        patch = processor.patch_size * processor.merge_size
        side = min(self.side, int(processor.size["longest_edge"] ** 0.5))  # longest_edge counts the picture's pixels
        return Image.new("RGB", (max(1, side // patch) * patch,) * 2)

    def inputs(self, pictures: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        as_they_are = {"do_resize": False, "do_rescale": False, "do_normalize": False}
        patches = self.processor.image_processor(images=list(pictures), return_tensors="pt", **as_they_are)
        patches = {name: _repeated(value.to(ids.device), len(pictures), len(ids) // len(pictures))
                   for name, value in patches.items()}  # pixel_values (R * patches, D), image_grid_thw (R, 3)
        return {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == self.image_token_id()).int()} | patches

    def next_position(self, prompt: int) -> int:
        return prompt + int(self.model.model.rope_deltas[0])  # a picture takes fewer positions than tokens

    def step(self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        return super().step(tokens, positions.expand(3, -1, -1), mask, cache)  # of text, the three positions are one


class Git(Llava):
    """GIT: no chat; the picture's tokens stand in the cache, before all text, without ids or positions."""

    vision, projector, language = "git.image_encoder", "git.visual_projection", "git.encoder"
    instruction = ""

    def prompt(self, instruction: str) -> tuple[list[int], str]:
        return [*self.lead(), *self.tokenizer(instruction, add_special_tokens=False)["input_ids"]], ""

    def lead(self) -> list[int]:
        return [self.text_config.bos_token_id]

    def image_token_id(self) -> None:
        return None

    def step(self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        git = self.model.git  # and not its forward, which before transformers 5.24 takes no such mask
        states = git.encoder(git.embeddings(input_ids=tokens, position_ids=positions), mask, cache).last_hidden_state
        return self.model.output(states)


class Blip2(Git):
    """BLIP-2 with a decoder-only language model; the queries' placeholders come before all text."""

    vision, projector = "vision_model", "language_projection"
    language = decoder = "language_model"
    step = Llava.step

    def lead(self) -> list[int]:
        return [self.image_token_id()] * self.config.num_query_tokens + super().lead()

    def image_token_id(self) -> int:
        return self.config.image_token_id


class Blip(Git):
    """BLIP: the picture comes in by cross-attention, whose keys and values the cache holds too."""

    vision = projector = "vision_model"
    language = decoder = "text_decoder"

    def end_ids(self) -> list[int]:
        return [self.text_config.sep_token_id]

    def forward(self, inputs: dict[str, Tensor], **options) -> Tensor:
        pictures = self.model.vision_model(pixel_values=inputs["pixel_values"]).last_hidden_state  # (R, S, D)
        text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        return self.model.text_decoder(**text, encoder_hidden_states=pictures, **options).logits

    def cache(self) -> Cache:
        return EncoderDecoderCache(DynamicCache(), DynamicCache())

    def step(self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        # the pictures' states only have to be there: their keys and values are in the cache
        return self.model.text_decoder(input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache,
                                       use_cache=True, encoder_hidden_states=mask).logits


FAMILIES = {"blip": Blip, "blip-2": Blip2, "git": Git, "llava": Llava, "idefics3": Idefics3, "smolvlm": Idefics3,
            "qwen2_vl": QwenVL, "qwen2_5_vl": QwenVL}  # by the model_type of a config
