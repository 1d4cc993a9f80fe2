"""What the measures allow to be said: which column is best, which are suspect, what a mix adds, and how sure that is."""
