"""Captioner and pictures in, caption columns and reinforced records out."""
