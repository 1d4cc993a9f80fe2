"""Which figure of captions predicts how good their students are? Columns have equal lengths; figures are fixed
beforehand.
"""
