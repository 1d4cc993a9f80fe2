"""Records from files as people have them: tars, folders, tables, published caption sets, and sets by name."""
