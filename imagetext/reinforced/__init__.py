"""What reinforced records hold beside captions: views of the picture, and embeddings."""
