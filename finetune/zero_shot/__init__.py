"""`capsmith zero-shot`: which class a picture is of, as CLIP models tell it from the classes' names alone."""
