#!/usr/bin/env bash
# Captions a folder of pictures: caption_folder.sh PICTURES MODEL OUTPUT [flags of `capsmith generate`]
# The same command again continues where it stopped.
set -euo pipefail
if [ $# -lt 3 ]; then
    sed -n '2,3s/^# //p' "$0" >&2
    exit 1
fi
pictures=$1 model=$2 output=$3
shift 3

# A preview of ten pictures: OUTPUT-look/gallery.html shows them, and the last line estimates what all pictures would take.
capsmith generate --input "$pictures" --model "$model" --output "$output-look" --limit 10 "$@"

capsmith generate --input "$pictures" --model "$model" --output "$output" "$@"
capsmith diversity --input "$output" --output "$output-report"
capsmith verify "$output"    # last, because it ends with 1 if many pictures have the same caption
