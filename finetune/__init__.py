"""Captioner and captioned pictures in, a better captioner out."""
