"""What follows from the measures: the best column, suspect columns, what a mix adds, and how certain this is."""
