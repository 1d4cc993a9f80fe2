"""Captioners: models that write captions for pictures, for texts, or for both."""
