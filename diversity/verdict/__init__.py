"""What follows from the measures: which column is best, which are suspect, what a mix adds, and how certain this is."""
