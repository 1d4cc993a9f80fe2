"""`capsmith select`: captions and records chosen by their scores, by share of the set, and by how often one may stand."""
