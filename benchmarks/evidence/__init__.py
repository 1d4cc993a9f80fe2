"""Do captions, and a teacher's knowledge, make better students? In miniature, on the built-in picture set."""
