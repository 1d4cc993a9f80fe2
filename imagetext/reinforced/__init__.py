"""The parts of reinforced records that are not captions: views of the picture, and embeddings."""
