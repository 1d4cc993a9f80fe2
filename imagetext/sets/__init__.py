"""Add columns of captions to existing sets: make room for a new column, and join columns written separately."""
