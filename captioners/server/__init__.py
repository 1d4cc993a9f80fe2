"""Models behind OpenAI-compatible servers: requests, their number at a time, and reading of the answers."""
