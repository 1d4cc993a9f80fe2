"""Vision-language models of transformers as captioners: captioning, fine-tuning with or without adapters, saving.

Dimensions: H, W height and width of a picture, B pictures in a batch, K captions of each, L tokens of the longest
caption, T caption tokens to predict, V vocabulary, D width of the vision tower.
"""

import copy
import functools
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from captioners.base import Captioned, Request, SamplingConfig, picture_of
from captioners.decoding.continuing import Continuing
from captioners.decoding.rows import Rules, peak_bytes
from captioners.decoding.search import caption_valid_requests, evaluating, search, to_captions
from captioners.decoding.special_tokens import SpecialTokens, Tokenizer
from captioners.names import check_name
from captioners.safe_reading import attempt
from captioners.vlm.decode import begin_rows
from captioners.vlm.families import FAMILIES, OwnAspect
from captioners.vlm.family import Llava, Prompt
from captioners.weights import folder_sha256
from imagetext.outputs import whole_files

CONTEXT = 256  # maximum tokens of a caption, if the model has as many positions left
ADAPTER = "adapter_config.json"  # peft's config of an adapter
SAVED_MODULE = ".modules_to_save.default."  # in the names of weights that an adapter holds whole
OURS = "capsmith.json"  # what capsmith stores beside a model: its name and instruction


class VLMCaptioner:
    """A transformers image-text-to-text model with its processor, in eval mode, possibly with LoRA adapters.

    A caption follows the picture and a prompt: the instruction within the family's chat template, or the instruction
    alone if the family has none. The prompt takes the place of the start token; it counts neither for token limits nor
    for logit processors. Of the model's generation config, only the end tokens are used.

    instruction: the default instruction, with which the model was trained. prompt: the prompt with this instruction.
    context_length: maximum tokens of a caption, start and end included.
    start_id: a special token that no caption contains; it is also the pad token.
    answer_end: the token that ends a caption in training: the one that the chat template puts after an answer, which
        need not be the tokenizer's end token, as in Gemma 3.
    batch_size: default number of pictures captioned at a time.
    weights_sha256: hash of the weights in float32, adapters included.
    merges: whether `save` merges the adapters into the weights.
    """

    looks_at_pictures = needs_picture = takes_instruction = True
    needs_instruction = False
    family: Llava
    processor: Any  # a ProcessorMixin; Any, because transformers' types lack its parts
    tokenizer: Tokenizer

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        name: str,
        weights_sha256: str,
        source: str,
        instruction: str | None = None,
        adapter: PeftModel | None = None,
    ):
        self.model, self.processor, self.adapter, self.merges = model, processor, adapter, False
        self.batch_size, self.name, self.weights_sha256 = 16, name, weights_sha256
        self.family = attempt(
            f"{source}: its processor does not fit its model", FAMILIES[model.config.model_type], model, processor
        )
        self.tokenizer = processor.tokenizer
        self.instruction = self.family.instruction if instruction is None else instruction
        self.preprocess: Callable[[Image.Image], Tensor] = self.family.preprocess()
        problems = attempt(f"{source}: its processor cannot process a picture", self._picture_problems)
        self._prompts = functools.lru_cache(self.family.prompt)
        self.prompt = attempt(
            f"{source}: its processor cannot make a prompt of {self.instruction!r}",
            lambda: self.family.fit(self._prompts(self.instruction), self.preprocess(self.family.blank())),
        )
        self.end_ids = self.family.end_ids()
        self.special = SpecialTokens(self.tokenizer, self.end_ids)
        self.special_ids = self.special.ids
        text_config = model.config.get_text_config()
        # our decoding attends to all tokens, so it must end before the first token would leave the model's window
        window = getattr(text_config, "sliding_window", None) or text_config.max_position_embeddings
        self.positions = min(window, text_config.max_position_embeddings)
        positions_left = self.positions - len(self.prompt.ids)
        unused_ids = [id for id in self.special.not_ends if id != self.family.image_token_id()]
        if not self.end_ids:
            problems.append("no eos_token_id in its generation config")
        if not unused_ids:
            problems.append("its tokenizer has no special tokens except those for pictures and ends")
        if positions_left < 2:
            problems.append(
                f"the prompt leaves {positions_left} of the {self.positions} positions"
                " (max_position_embeddings, sliding_window)"
            )
        if problems:
            raise ValueError(f"{source}: " + "; ".join(problems))
        self.end_id, self.start_id, self.pad_id = self.end_ids[0], unused_ids[0], unused_ids[0]
        # LLaMA's tokenizers begin every text with a blank, so the lead is tokenised after the prompt's last token
        last = self.tokenizer.decode(self.prompt.ids[-1:]) if self.prompt.lead else ""
        self._lead, self._num_last = last + self.prompt.lead, len(self._tokens(last))
        after = self._tokens(self.prompt.tail.strip())[:1]
        self.answer_end = after[0] if after and after[0] in self.end_ids else self.end_id
        self.context_length, self.vocabulary = min(positions_left + 1, CONTEXT), text_config.vocab_size
        self.description = self._describe(source)

    def _picture_problems(self) -> list[str]:
        pictures = [self.preprocess(Image.new("RGB", size)) for size in ((64, 32), (32, 64))]
        if not all(picture.isfinite().all() for picture in pictures):
            return ["its processor makes pixels that are not finite numbers, as if image_std were 0"]
        wide, high = (tuple(picture.shape[1:]) for picture in pictures)
        if wide == high or isinstance(self.family, OwnAspect):
            return []
        return [
            "its processor keeps the aspect of pictures, which this family does not support: it makes"
            f" {wide} and {high} of a wide and a high picture"
        ]

    def check(self, sampling: SamplingConfig, *, similarity: bool = False) -> None:
        """Raise ValueError if the captioner does not support the sampling, or if similarity is requested."""
        self._rules(sampling, similarity=similarity)

    def caption(
        self,
        requests: Iterable[Request],
        sampling: SamplingConfig,
        *,
        column: str = "",
        first_index: int = 0,
        similarity: bool = False,
        batch_size: int | None = None,
    ) -> Iterator[Captioned]:
        """Caption the pictures (3, H, W) of requests (see `captioners.base.Captioner`); results in input order.

        Each caption starts with sampling.prefix. Greedy captions equal those of transformers' greedy search.
        The embedding (D,) of a picture is the mean of the vision tower's states.
        Raises ValueError as `check` does, before the first picture is read.
        """
        rules, in_flight = self._rules(sampling, similarity=similarity), batch_size or self.batch_size

        def caption(requests: Iterable[Request]) -> Iterator[Captioned]:
            decoded = search(
                self._begin(rules), requests, rules, batch_size=in_flight, column=column, first_index=first_index
            )
            return to_captions(decoded, self.model, self.decode, stops=sampling.stops)

        return caption_valid_requests(
            requests, lambda request: self._find_problem(request, rules.max_length - 2), caption
        )

    def _find_problem(self, request: Request, limit: int) -> str:
        """Return why a request cannot be answered with a caption of `limit` tokens; "" if it can."""
        if request.instruction is None:
            return ""
        try:
            prompt = attempt("cannot make a prompt of the instruction", self._prompt, request)
        except ValueError as error:
            return str(error)
        if max(len(prompt.ids) + limit, len(prompt.encoder_ids)) <= self.positions:
            return ""
        used = len(prompt.encoder_ids or prompt.ids)
        return (
            f"picture and instruction take {used} of {self.positions} positions,"
            f" which leaves no room for a caption of {limit} tokens"
        )

    def _prompt(self, request: Request) -> Prompt:
        """The prompt of a request. Names of special tokens are removed from its instruction, which is not trusted."""
        if request.instruction is None:
            instruction = self.instruction
        else:
            instruction = self.special.blanked(request.instruction)
        return self.family.fit(self._prompts(instruction), picture_of(request))

    def bytes_per_picture(self, sampling: SamplingConfig) -> int:
        """Estimate the peak memory, in bytes, of a picture in flight and its captions."""
        rules = self._rules(sampling)
        with evaluating(self.model), torch.no_grad():
            _, rows = self._begin(rules)([Request("", self.preprocess(self.family.blank()))])
        return peak_bytes(sampling, rows.bytes_per_picture, self.vocabulary)

    def _begin(self, rules: Rules) -> Callable[[Sequence[Request]], tuple[Tensor, Continuing]]:
        """Return the function that encodes the pictures and prompts of requests and begins their rows."""

        def begin(requests: Sequence[Request]) -> tuple[Tensor, Continuing]:
            return begin_rows(
                self.family,
                [picture_of(request).to(self.model.device) for request in requests],
                [self._prompt(request) for request in requests],
                ends=self.end_ids,
                greedy=rules.sampling.strategy == "greedy",
                limit=rules.max_length - 2,
            )

        return begin

    def _rules(self, sampling: SamplingConfig, *, similarity: bool = False) -> Rules:
        """The decoding rules for this sampling; ValueError as `check` raises it."""
        if similarity:
            raise ValueError(f"similarity: {self.name} has no embeddings that can compare captions and pictures")
        banned = sorted({*self.special_ids, *range(len(self.tokenizer), self.vocabulary)} - {self.end_id})
        return Rules.of_captioner(self, sampling, banned, device=self.model.device)

    def encode_text_ids(self, text: str) -> list[int]:
        """All token ids of a caption, from start to end token; special tokens that the text names are removed."""
        ids = self._tokens(self._lead + text)[self._num_last :]
        return [self.start_id, *(id for id in ids if id not in self.special_ids), self.answer_end]

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids up to the first end token, without special tokens and outer white space."""
        ids = itertools.takewhile(lambda id: id not in self.end_ids, ids)
        return self.tokenizer.decode([id for id in ids if id not in self.special_ids]).strip()

    # Training

    def caption_logits(self, pictures: Sequence[Tensor], tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (T, V) and labels (T,) of the tokens of captions, end tokens included, without padding.

        pictures: B of them; each is encoded once.
        tokens: (B, K, L) or (B, L), start token included, padded at the end with `pad_id`.
        """
        captions = tokens.shape[1] if tokens.ndim == 3 else 1
        prompts = []  # one per caption
        for picture in pictures:
            prompts += [self.family.fit(self.prompt, picture)] * captions
        rows = []  # prompt and caption; the prompt takes the place of the start token
        for prompt, caption in zip(prompts, tokens.flatten(0, -2), strict=True):
            without_start = caption[1:]
            caption_ids = without_start[without_start != self.pad_id]
            rows.append(torch.cat([caption_ids.new_tensor(prompt.ids), caption_ids]))
        ids = pad_sequence(rows, batch_first=True, padding_value=self.pad_id)  # (B * K, longest)
        columns = torch.arange(ids.shape[1], device=ids.device)
        begins = torch.tensor([len(prompt.ids) for prompt in prompts], device=ids.device)[:, None]
        ends = torch.tensor([len(row) for row in rows], device=ids.device)[:, None]
        inputs = self.family.inputs(pictures, prompts, ids, mask=(columns < ends).long())
        first = min(len(prompt.ids) for prompt in prompts) - 1
        is_caption = ((columns >= begins) & (columns < ends))[:, first + 1 :]  # (B * K, longest - first - 1)

        def keep_captions(head: nn.Module, args: tuple[Tensor]) -> Tensor:
            states = args[0][:, -is_caption.shape[1] - 1 : -1]  # (B * K, longest - first - 1, width)
            return states[is_caption]

        decoder: Any = self.model.get_submodule(self.family.decoder)
        hook = decoder.get_output_embeddings().register_forward_pre_hook(keep_captions)
        try:
            with self.family.encoding_once(pictures, captions):
                logits = self.family.forward(inputs, logits_to_keep=is_caption.shape[1] + 1, use_cache=False)
        finally:
            hook.remove()
        return logits, ids[:, first + 1 :][is_caption]

    def add_lora(
        self,
        *,
        r: int = 16,
        alpha: float = 32,
        dropout: float = 0.05,
        target_modules: Sequence[str] | str | None = None,
    ) -> None:
        """Add LoRA adapters (Hu et al. 2021, arXiv 2106.09685) to the model; only they are trained from now on.

        target_modules: as in peft; None: all linear layers of the language model except the last, as in QLoRA.
        Raises ValueError if the model has adapters already, or no module is a target.
        """
        if self.adapter is not None:
            raise ValueError(f"{self.name}: has adapters already")
        options: dict[str, Any] = {"lora_alpha": alpha, "target_modules": target_modules or self.language_layers()}
        self.adapter = get_peft_model(self.model, LoraConfig(r=r, lora_dropout=dropout, **options))

    def _merged(self) -> dict[str, Tensor]:
        """The weights with the adapters' weights added, in the dtype of the model and by its names without adapters.

        The model itself is not changed, because adding and subtracting would round the frozen weights each time.
        """
        merged = {
            name.replace(".base_layer.", ".").replace(SAVED_MODULE, "."): weight
            for name, weight in self.model.state_dict().items()
            if ".lora_" not in name and ".original_module." not in name
        }
        adapted: list[tuple[str, Any]] = [
            (name, layer) for name, layer in self.model.named_modules() if isinstance(layer, LoraLayer)
        ]
        for name, layer in adapted:
            whole = copy.deepcopy(layer).float()  # one layer at a time, because all may not fit in memory
            whole.merge()  # peft's own, which knows the magnitudes of DoRA, and biases
            for part, weight in whole.get_base_layer().state_dict().items():
                merged[f"{name}.{part}"] = weight.to(merged[f"{name}.{part}"].dtype)
        return merged

    def language_layers(self, names: Sequence[str] = ()) -> str:
        """A pattern of the language model's layers with these names; by default all linear ones but the last.

        Raises ValueError if it has no layer of one of these names.
        """
        decoder: Any = self.model.get_submodule(self.family.decoder)
        last = decoder.get_output_embeddings()
        layers = dict(self.model.get_submodule(self.family.language).named_modules())
        linear = {name for name, layer in layers.items() if isinstance(layer, nn.Linear) and layer is not last}
        usual = sorted({name.rpartition(".")[2] for name in linear})  # the last parts, to keep a config short
        for name in names:
            if not any(layer.endswith(f".{name}") for layer in layers):
                raise ValueError(f"the language model has no layer {name}; its linear layers are {', '.join(usual)}")
        return rf"{re.escape(self.family.language)}\..*\.({'|'.join(map(re.escape, names or usual))})"

    def save(self, folder: str | os.PathLike, name: str) -> None:
        """Write the model in transformers' format, or only its adapters in peft's, and processor, name, instruction.

        With `merges`, adapters are merged into the model's weights, and the model is written.
        name: the captioner's name in columns of records ([a-z0-9_]+).
        Each file is written under a temporary name and then renamed, the config last.
        Raises ValueError for a bad name.
        """
        check_name(name)
        with whole_files(folder, last=("config.json", ADAPTER)) as staging:
            if self.adapter is None or self.merges:
                self.model.save_pretrained(staging, state_dict=self._merged() if self.merges else None)
            else:
                # the default, save_embedding_layers="auto", would make requests to the hub
                self.adapter.save_pretrained(str(staging), save_embedding_layers=False)
                (staging / "README.md").unlink()  # an empty form
            self.processor.save_pretrained(staging)
            ours = {"name": name, "instruction": self.instruction}
            if self.adapter is not None and not self.merges and os.path.isdir(base := self.model.name_or_path or ""):
                ours["base_sha256"] = folder_sha256(Path(base))  # so that loading can verify the local base model
            (staging / OURS).write_text(json.dumps(ours, indent=2) + "\n", encoding="utf-8")

    def _describe(self, source: str) -> str:
        """The lines about the model that are printed before a run."""
        kind = f"{type(self.model).__name__} of {self.model.num_parameters() / 1e6:.1f} M parameters"
        prompt = f"{len(self.prompt.ids)} of picture and prompt, {self.instruction!r}"
        shape = " x ".join(map(str, self.preprocess(self.family.blank()).shape[-2:]))
        pictures = "at their own aspect" if isinstance(self.family, OwnAspect) else f"{shape} px"
        four_bit = ", in 4 bits" if self.model.config.to_dict().get("quantization_config") else ""
        adapters = ", LoRA adapters" if self.adapter is not None else ""
        return "\n".join(
            (
                f"architecture: {self.name}, {kind}",
                f"context: {self.context_length} tokens after {prompt}",
                f"pictures: {pictures}",
                f"weights: {source}{four_bit}{adapters}",
            )
        )
