"""Captioners: pixels in, captions out."""
