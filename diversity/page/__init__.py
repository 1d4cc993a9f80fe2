"""The report as a page: figures and HTML."""
