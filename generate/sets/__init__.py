"""What is done with finished sets: verification, gallery, card, and joining captions to them."""
