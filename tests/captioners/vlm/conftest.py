"""Folders with tiny models, and captioners loaded from them as real ones are."""

import functools
import shutil

import pytest
import torch

from captioners.vlm.load import load_vlm

from .models import END, ENDS, edit, make_model_and_processor, scramble


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """folder_of(family): a folder with a scrambled model whose captions differ between pictures, of many lengths."""

    @functools.cache
    def make(family: str):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, processor = make_model_and_processor(family)
        scramble(model)
        if family == "blip":  # one token ends its captions, whatever its generation config
            with torch.no_grad():
                model.text_decoder.cls.predictions.bias[END] += 4
        else:
            (model.language_model if family == "blip-2" else model).generation_config.eos_token_id = ENDS
        folder = tmp_path_factory.mktemp("vlm") / f"Tiny {family}"
        model.save_pretrained(folder)
        if family == "blip-2":  # its language model's own, at loading, comes from here
            edit(folder / "config.json", lambda config: config["text_config"].update(eos_token_id=ENDS))
        processor.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def captioner_of(folder_of):
    """captioner_of(family): that model as it is loaded; tests leave it as it is."""
    return functools.cache(lambda family: load_vlm(folder_of(family)))


@pytest.fixture
def copy_of(folder_of, tmp_path):
    """copy_of(family): a folder of its own with that model."""
    return lambda family: shutil.copytree(folder_of(family), tmp_path / "copy")
