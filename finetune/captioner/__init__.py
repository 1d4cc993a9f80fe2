"""`capsmith finetune`: a captioner and captioned pictures in, a better captioner out."""
