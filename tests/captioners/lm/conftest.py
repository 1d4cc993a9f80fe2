"""Captioners loaded from folders with tiny language models, as real ones are."""

import functools

import pytest

from captioners.load import load_captioner

from .models import CHAT, save


@pytest.fixture(scope="session")
def captioner_of(tmp_path_factory):
    """captioner_of(family, chat=False): a captioner that tests leave as it is."""

    @functools.cache
    def make(family: str, chat: bool = False):
        folder = tmp_path_factory.mktemp("lm") / f"Tiny {family}"
        return load_captioner(save(folder, family, chat=CHAT if chat else None).as_posix())

    return make
