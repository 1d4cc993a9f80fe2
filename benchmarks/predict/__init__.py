"""Which figure of captions predicts how good their students are? Columns of equal length, figures fixed beforehand, and a judge."""
