"""Read the inputs, join their rows to pictures, and choose equally many captions of each column to compare."""
