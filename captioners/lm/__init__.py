"""Causal language models of transformers as captioners: captions from texts."""
