"""`capsmith train-student`: reinforced records in, a CLIP model out."""
