"""The parts of reinforced records beside captions: views of the picture, and embeddings."""
