"""Fine-tune captioners, train students (CLIP models), and measure how well CLIP models classify pictures."""
