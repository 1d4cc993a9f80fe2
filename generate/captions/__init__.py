"""`capsmith generate`: pictures in, caption columns out."""
