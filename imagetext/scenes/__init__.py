"""The built-in picture set: scenes that are drawn, what is true of them, and the words for them."""
