"""The HTML page of a report, with its tables and plots."""
