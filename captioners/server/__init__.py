"""Models behind OpenAI-compatible servers: how they are asked, how much at a time, and what is made of their answers."""
