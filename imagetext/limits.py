"""How much is read of what a stranger wrote. Whatever is more has a reason that says so, and no row takes more than 2 GB.

What belongs to one row costs that row; what makes a file unreadable from there on costs the rest of the file.
"""

# ---- bytes
FILE = 1 << 28  # of one file of a sample: a picture, a member of a tar, a cell of a table
SAMPLE = 1 << 30  # of all files of a sample in a tar, and of files that wait for the rest of their samples
TEXT = 1 << 20  # of a file of captions or fields beside a picture, and of a --config
LINE = 1 << 26  # of a line of text, and of an element of a JSON array
SKIPPED = 1 << 30  # of a longer line, whose end is looked for: it costs its row alone
BLANK = 1 << 28  # of blank lines between two rows
DOCUMENT = 1 << 29  # of a JSON document that is read whole: annotations of COCO, an info.json
UNPACKED = 16 << 30  # of a compressed table that is put on disk, and of a file of a compressed tar that is passed over
TAR_HEADERS = 1 << 20  # of all headers of one file of a tar
PADDING = 1 << 26  # behind the end of a tar, of which it is seen whether they are empty
NAME = 4096  # of the name of a file of a tar
EMBEDDINGS = 1 << 28  # of a record's embeddings in float32: 40,000 rows of 1,536 numbers
PAGE = 3 << 28  # of pages of Parquet that are read together, unpacked
BATCH = 1 << 28  # of rows of Parquet that are made together, and of texts of a table's rows that wait for others
PARQUET_TEXT = 1 << 26  # of a text in the footer of Parquet

# ---- numbers
DEPTH = 100  # JSON objects and lists in each other
BLANK_LINES = 1 << 21  # between two rows; spreadsheets write up to 2^20
VALUES = 1 << 22  # in a JSON row of more than a MiB, and in a column of lists of a row group of Parquet
DOCUMENT_VALUES = 1 << 24  # in a JSON document that is read whole
YAML_VALUES = 10_000  # in a --config, those that aliases repeat included
PARQUET_ROWS = 64  # for each byte of a file of Parquet
PIXELS = 200_000_000  # of a picture: the most that a telephone makes
ASPECT = 200  # of the longer side to the shorter: models that resize the shorter one would make gigabytes of a line
IN_FLIGHT = 2 * PIXELS  # of all pictures that the workers of a process decode at once
CHUNKS = 100_000  # of a PNG
SCANS = 100  # of a progressive JPEG, as libjpeg-turbo's tools advise; encoders write about ten
INSTRUCTION = 1 << 16  # characters of an instruction, of its template, and of each value that goes into it
TEMPLATE_NODES = 2_000  # parts of a template
TEMPLATE_STEPS = 100_000  # parts of a template's loops that one rendering goes through
