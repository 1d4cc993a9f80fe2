"""Vision-language models of transformers as captioners."""
