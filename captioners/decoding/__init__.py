"""From a model's logits to captions: drawn, greedy or by beams, for every captioner that chooses its tokens here."""
