"""From a model's logits to captions: sampling, greedy search and beam search, for every local captioner."""
