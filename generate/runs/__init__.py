"""Runs over shards, whatever is made of them: what a run is, what it reads, who works, and on which engine."""
