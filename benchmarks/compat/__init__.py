"""Our records read by others' programs, each in an environment of its own; what came of it stands in docs/compatibility.md."""
