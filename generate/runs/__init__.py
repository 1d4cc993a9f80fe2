"""Runs over shards, for all commands: their settings, inputs, folders, processes and engines."""
