"""`capsmith zero-shot`: measures how often CLIP models give the right class from class names alone."""
