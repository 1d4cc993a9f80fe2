"""Finished sets: verified, shown, described by a card, joined."""
