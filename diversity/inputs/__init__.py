"""From specs to the captions that are compared: rows, their pictures, equally many captions of each column."""
