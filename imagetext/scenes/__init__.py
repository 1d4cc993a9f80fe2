"""The built-in picture set: drawn scenes, the facts that are true of them, and captions for them."""
