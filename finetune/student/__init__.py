"""`capsmith train-student`: takes reinforced records, and writes a CLIP model."""
