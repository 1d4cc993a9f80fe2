"""All that a GPU is measured on, in one command: see `benchmarks.gpu.__main__`."""
