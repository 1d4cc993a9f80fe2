"""How transformers' families of image-text-to-text models differ from LLaVA, and the table of all families.

Dimensions: N pictures, H, W height and width of a picture or tile, R rows (captions in flight), S image tokens,
T tiles of a picture, D width of the vision tower.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.processing_utils import ProcessorMixin

from captioners.decoding.cache import CACHE
from captioners.vlm.family import SMALL, Llava, Prompt
from captioners.vlm.pictures import PreprocessPatches, PreprocessSizedTiles, PreprocessTiles, original_size


class Idefics3(Llava):
    """Idefics3 and SmolVLM, with the whole picture in one square tile."""

    vision, projector, language = "model.vision_model", "model.connector", "model.text_model"
    options = {"do_image_splitting": False, "do_resize": False}  # the processor resizes to the square nevertheless

    def pixels(self, pictures: Sequence[Tensor]) -> dict[str, Tensor]:
        return super().pixels([picture[None] for picture in pictures])  # (R, tiles, 3, H, W)


class OwnAspect(Llava):
    """Families whose pictures keep their aspect ratio, which decides how many tokens a picture takes.

    The tokens of a picture are adjacent in the prompt.
    """

    def fit(self, prompt: Prompt, picture: Tensor) -> Prompt:
        token, ids = self.config.image_token_id, prompt.ids
        first = ids.index(token)
        after = ids[first + ids.count(token) :]
        return prompt._replace(ids=[*ids[:first], *[token] * self.image_tokens(picture), *after])

    def image_tokens(self, picture: Tensor) -> int:
        """The number of tokens that a picture takes in the prompt."""
        raise NotImplementedError


class LlavaNext(OwnAspect):
    """LLaVA-NeXT and LLaVA-OneVision: the picture in one square, and in tiles whose padding takes no tokens."""

    def preprocess(self) -> PreprocessSizedTiles:
        return PreprocessSizedTiles(self.processor.image_processor, self.options)

    def blank(self) -> Image.Image:
        height, width = max(self.processor.image_processor.image_grid_pinpoints, key=lambda size: self._tokens(*size))
        return Image.new("RGB", (width, height))

    def size(self, picture: Tensor) -> int:
        return len(picture) - 1

    def image_tokens(self, picture: Tensor) -> int:
        return self._tokens(*original_size(picture))

    def _tokens(self, height: int, width: int) -> int:
        return self.processor._get_num_multimodal_tokens(image_sizes=[(height, width)])["num_image_tokens"][0]

    def pixels(self, pictures: Sequence[Tensor]) -> dict[str, Tensor]:
        tiles = pad_sequence([picture[:-1] for picture in pictures], batch_first=True)  # (R, T, 3, H, W)
        sizes = torch.tensor([original_size(picture) for picture in pictures], device=tiles.device)
        return {"pixel_values": tiles.to(self.model.dtype), "image_sizes": sizes}


class InternVL(OwnAspect):
    """InternVL: the picture in tiles, and in one square."""

    options = {"crop_to_patches": True}

    def preprocess(self) -> PreprocessTiles:
        return PreprocessTiles(self.processor.image_processor, self.options)

    def blank(self) -> Image.Image:
        processor = self.processor.image_processor
        return Image.new("RGB", (processor.max_patches * processor.size["width"], processor.size["height"]))

    def size(self, picture: Tensor) -> int:
        return len(picture)

    def image_tokens(self, picture: Tensor) -> int:
        return len(picture) * self.processor.image_seq_length

    def pixels(self, pictures: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"pixel_values": torch.cat(list(pictures)).to(self.model.dtype)}


class QwenVL(OwnAspect):
    """Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

    vision = projector = "model.visual"
    tokens_per_side = 16  # of the largest square picture

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        super().__init__(model, processor)
        images = processor.image_processor
        token_side = images.patch_size * images.merge_size  # pixels
        # despite their names, both edges in `size` are numbers of pixels in the whole picture
        min_pixels, max_side = int(images.size["shortest_edge"]), int(images.size["longest_edge"] ** 0.5)
        self.side = token_side * max(1, min(self.tokens_per_side, max_side // token_side))
        max_pixels = self.side**2
        self.options = {"size": {"shortest_edge": min(min_pixels, max_pixels), "longest_edge": max_pixels}}

    def preprocess(self) -> PreprocessPatches:
        return PreprocessPatches(self.processor.image_processor, self.options)

    def blank(self) -> Image.Image:
        return Image.new("RGB", (self.side, self.side))

    def size(self, picture: Tensor) -> int:
        return picture.shape[0] * picture.shape[1]

    def image_tokens(self, picture: Tensor) -> int:
        return self.size(picture) // self.processor.image_processor.merge_size**2

    def inputs(
        self, pictures: Sequence[Tensor], prompts: Sequence[Prompt], ids: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        inputs = super().inputs(pictures, prompts, ids, mask=mask)
        return inputs | {"mm_token_type_ids": (ids == self.image_token_id()).int()}

    def pixels(self, pictures: Sequence[Tensor]) -> dict[str, Tensor]:
        patches = torch.cat([picture.flatten(0, 1) for picture in pictures])
        grids = torch.tensor([(1, *picture.shape[:2]) for picture in pictures], device=patches.device)
        return {"pixel_values": patches.to(self.model.dtype), "image_grid_thw": grids}

    def next_positions(self, prompts: Tensor) -> Tensor:
        return prompts + self.model.model.rope_deltas[:, 0]  # a picture takes fewer positions than tokens

    def step(self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        # time, height and width: the three positions of a text token are equal
        return super().step(tokens, positions.expand(3, -1, -1), mask, cache=cache)


class Gemma3(Llava):
    """Gemma 3: the picture is one square, whose tokens attend to each other."""

    options = {"do_pan_and_scan": False}

    def inputs(
        self, pictures: Sequence[Tensor], prompts: Sequence[Prompt], ids: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        inputs = super().inputs(pictures, prompts, ids, mask=mask)
        return inputs | {"token_type_ids": (ids == self.image_token_id()).int()}


class PaliGemma(Llava):
    """PaliGemma: no chat template; the tokens of picture and prompt attend to each other, and positions start at 1."""

    instruction = "caption en"

    def prompt(self, instruction: str) -> Prompt:
        inputs = self.processor(text=[self.processor.image_token + instruction], images=[SMALL])
        return Prompt(list(map(int, inputs["input_ids"][0])))

    def inputs(
        self, pictures: Sequence[Tensor], prompts: Sequence[Prompt], ids: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        prompt_lengths = torch.tensor([len(prompt.ids) for prompt in prompts], device=ids.device)
        in_caption = (torch.arange(ids.shape[1], device=ids.device) >= prompt_lengths[:, None]).int()
        return super().inputs(pictures, prompts, ids, mask=mask) | {"token_type_ids": in_caption}

    def next_positions(self, prompts: Tensor) -> Tensor:
        return prompts + 1


class Git(Llava):
    """GIT: no chat template; the picture's tokens come before all text in the cache, without ids or positions."""

    vision, projector, language = "git.image_encoder", "git.visual_projection", "git.encoder"
    instruction = ""

    def prompt(self, instruction: str) -> Prompt:
        return Prompt([*self.start_ids(), *self.tokenizer(instruction, add_special_tokens=False)["input_ids"]])

    def start_ids(self) -> list[int]:
        """The tokens before the instruction."""
        return [self.text_config.bos_token_id]

    def image_token_id(self) -> None:
        return None

    def step(self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        git = self.model.git  # not its forward, which accepts no such mask before transformers 5.24
        states = git.encoder(git.embeddings(input_ids=tokens, position_ids=positions), mask, cache).last_hidden_state
        return self.model.output(states)


class Blip2(Git):
    """BLIP-2 with a decoder-only language model; the placeholders of the queries come before all text."""

    vision, projector = "vision_model", "language_projection"
    language = decoder = "language_model"
    step = Llava.step

    def start_ids(self) -> list[int]:
        return [self.image_token_id()] * self.config.num_query_tokens + super().start_ids()

    def image_token_id(self) -> int:
        return self.config.image_token_id


class Blip(Git):
    """BLIP: the decoder attends to the picture by cross-attention, whose keys and values are in the cache, too."""

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
        # the encoder's states must be given but are not used: their keys and values are in the cache
        return self.model.text_decoder(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            encoder_hidden_states=mask,
            **{CACHE: cache},
        ).logits


class Florence2(Llava):
    """Florence-2: an encoder reads picture and prompt, and a decoder writes captions; `ids` are its first tokens."""

    instruction = "<CAPTION>"

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        super().__init__(model, processor)
        # its embeddings are a buffer, which keeps its dtype, and added to states in half precision
        model.get_submodule(self.projector).visual_temporal_embed.to(model.dtype)

    def prompt(self, instruction: str) -> Prompt:
        encoder_ids = self.processor(text=[instruction], images=[SMALL])["input_ids"][0]
        decoder_ids = self.text_config.decoder_start_token_id, self.model.generation_config.forced_bos_token_id
        return Prompt([id for id in decoder_ids if id is not None], encoder_ids=list(map(int, encoder_ids)))

    def inputs(
        self, pictures: Sequence[Tensor], prompts: Sequence[Prompt], ids: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        rows = [torch.tensor(prompt.encoder_ids, device=ids.device) for prompt in prompts]
        encoder_ids = pad_sequence(rows, batch_first=True)  # (R, longest)
        encoder_mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)  # (R, longest)
        inputs = super().inputs(pictures, prompts, encoder_ids, mask=encoder_mask)
        return inputs | {"decoder_input_ids": ids, "decoder_attention_mask": mask}

    def states(self, output: Any) -> Tensor:
        return output.last_hidden_state.flatten(2).mT  # from (N, D, rows, columns) to (N, rows * columns, D)

    def cache(self) -> Cache:
        return EncoderDecoderCache(DynamicCache(), DynamicCache())

    def step(self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Any) -> Tensor:
        # the decoder accepts no positions but derives them from the cache, so a hook replaces their embeddings
        decoder = self.model.model.language_model.decoder
        hook = decoder.embed_positions.register_forward_hook(
            lambda module, *_: module.weight[positions + module.offset]
        )
        try:
            states = decoder(
                input_ids=tokens,
                attention_mask=mask,
                encoder_hidden_states=mask,
                encoder_attention_mask=cache.cross_attention_cache.mask,
                **{CACHE: cache},
            )
        finally:
            hook.remove()
        return self.model.lm_head(states.last_hidden_state)


# By the model_type of a config.
FAMILIES = {
    "blip": Blip,
    "blip-2": Blip2,
    "git": Git,
    "llava": Llava,
    "llava_next": LlavaNext,
    "llava_onevision": LlavaNext,
    "internvl": InternVL,
    "idefics3": Idefics3,
    "smolvlm": Idefics3,
    "qwen2_vl": QwenVL,
    "qwen2_5_vl": QwenVL,
    "qwen3_vl": QwenVL,
    "gemma3": Gemma3,
    "paligemma": PaliGemma,
    "florence2": Florence2,
}
