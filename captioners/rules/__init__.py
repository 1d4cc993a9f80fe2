"""Captions made of captions by rules alone, without a model."""
