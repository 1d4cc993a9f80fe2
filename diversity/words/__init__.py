"""Split captions of all scripts into words and sentences, and find degenerate captions; all packages use this without torch."""
