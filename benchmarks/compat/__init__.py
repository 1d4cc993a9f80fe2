"""Programs of other projects read our records, each in its own environment; docs/compatibility.md has the results."""
