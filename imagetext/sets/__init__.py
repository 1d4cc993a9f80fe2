"""Columns of captions in sets that exist: room for a new one, and those that were written apart."""
