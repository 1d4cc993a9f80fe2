"""Measures of captions: one file for each family, and `catalogue` that says what each number is."""
