"""Do captions, and a teacher's knowledge, make better students? A small experiment on the built-in picture set."""
