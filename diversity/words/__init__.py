"""Split captions of all scripts into words and sentences, and find degenerate captions; no torch is needed."""
