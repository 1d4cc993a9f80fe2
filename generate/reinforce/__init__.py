"""`capsmith reinforce`: adds views of the pictures, and teachers' embeddings of views and captions, to records."""
