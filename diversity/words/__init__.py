"""Captions as words and sentences of all scripts, and which of them are degenerate; without torch, for all rooms."""
