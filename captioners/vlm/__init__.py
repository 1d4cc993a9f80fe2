"""Vision-language models of transformers as captioners: captions from pictures and instructions."""
