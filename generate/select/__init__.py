"""`capsmith select`: chooses captions and records by their scores, and limits how often a caption or class occurs."""
