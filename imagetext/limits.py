"""Limits on what is read from files that others wrote.

Data beyond a limit are an error with a reason, and no row takes more than 2 GB of memory. Data of one row that are too
large are an error of that row. Where the file cannot be read any further, the rest of the file is lost.
"""

# ---- limits in bytes
FILE = 1 << 28  # one file of a sample: a picture, a member of a tar, a cell of a table
SAMPLE = 1 << 30  # all files of one sample in a tar; all files that wait for the rest of their samples
TEXT = 1 << 20  # a file of captions or fields beside a picture; a --config file
LINE = 1 << 26  # a line of text; an element of a JSON array
SKIPPED = 1 << 30  # a longer line whose end can still be found: only its row is lost
BLANK = 1 << 28  # blank lines between two rows
DOCUMENT = 1 << 29  # a JSON document that is read as a whole: annotations of COCO, an info.json
UNPACKED = 16 << 30  # a compressed table that is unpacked to disk; a file of a compressed tar that is skipped
TAR_HEADERS = 1 << 20  # all headers of one file in a tar
PADDING = 1 << 26  # data after the end mark of a tar, which are checked to be empty
NAME = 4096  # the name of a file in a tar
EMBEDDINGS = 1 << 28  # the embeddings of a record in float32: 40,000 rows of 1,536 numbers
PAGE = 3 << 28  # Parquet pages that are read together, unpacked
BATCH = 1 << 28  # Parquet rows that are built together; texts of a table's rows that wait for other rows
PARQUET_TEXT = 1 << 26  # a text in the footer of a Parquet file

# ---- limits in numbers
DEPTH = 100  # levels of nested objects and lists in JSON, and in a --config file
BLANK_LINES = 1 << 21  # blank lines between two rows; spreadsheets write up to 2^20
VALUES = 1 << 22  # values in a JSON row of more than a MiB; values in a column of lists of a Parquet row group
DOCUMENT_VALUES = 1 << 24  # values in a JSON document that is read as a whole
YAML_VALUES = 10_000  # values in a --config file, counting those that aliases repeat
PARQUET_ROWS = 64  # rows for each byte of a Parquet file
PIXELS = 200_000_000  # pixels of a picture; the largest pictures of telephones have as many
ASPECT = 200  # longer side / shorter side: resizing the shorter side of a line of pixels would take gigabytes
IN_FLIGHT = 2 * PIXELS  # pixels of all pictures that the workers of a process decode at the same time
CHUNKS = 100_000  # chunks of a PNG
SCANS = 100  # scans of a progressive JPEG, as libjpeg-turbo's tools advise; encoders write about ten
INSTRUCTION = 1 << 16  # characters of an instruction, of its template, and of each value that is inserted into it
PRINTED = 1 << 16  # characters of a list of dictionaries in Python's notation
TEMPLATE_NODES = 2_000  # parts of a template
TEMPLATE_STEPS = 100_000  # parts of loops that are run while one template is rendered
