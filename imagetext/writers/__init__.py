"""What one record looks like in each format that is written."""
