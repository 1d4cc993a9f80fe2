"""`capsmith finetune`: takes a captioner and captioned pictures, and writes a better captioner."""
