"""Makes caption columns and reinforced records from a captioner and pictures."""
