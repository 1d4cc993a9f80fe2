"""`capsmith generate`: captions pictures, and writes the captions in columns of records."""
