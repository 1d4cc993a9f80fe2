"""Causal language models of transformers as captioners: captions from words."""
