"""`capsmith zero-shot`: measures how often CLIP models choose the right class of a picture from the class names alone."""
