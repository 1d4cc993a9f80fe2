"""`capsmith reinforce`: views of pictures, and teachers' embeddings of them and of their captions."""
