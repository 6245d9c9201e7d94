#!/usr/bin/env bash
# gguf 0.19.0 (the Python package), with numpy 2.4.6.
#
# Behaviour: GGUFWriter with split_max_tensors and add_custom_alignment(256) pads every part of the
# set to 256 bytes and writes the key general.alignment into the first part only. GGUFReader, given
# a later part, assumes the default of 32: it finds the data 96 bytes too early in this set and gives
# other numbers than were written, without a word. No file is damaged; the reader and the writer of
# one package disagree about what a part without the key means.
#
# Seen: "part 1: right", then for parts 2 and 3 "alignment 32, first values [0.0, 0.0, 0.0]" where
# 100.0, 101.0, 102.0 and 200.0, 201.0, 202.0 were written.
#
# For readers of split sets: a part that does not say its alignment may have the first part's or the
# default. Its size tells which: the data's start plus the padded end of the last tensor is the size.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check gguf==0.19.0 numpy==2.4.6
cat >"$work/check.py" <<'PYTHON'
import pathlib
import sys

import numpy as np
from gguf import GGUFReader, GGUFWriter

folder = pathlib.Path(sys.argv[1])
values = [np.arange(64, dtype=np.float32) + 100 * i for i in range(3)]
writer = GGUFWriter(folder / "set.gguf", "llama", split_max_tensors=1)
writer.add_custom_alignment(256)
for i, value in enumerate(values):
    writer.add_tensor(f"t{i}", value)
writer.write_header_to_file(folder / "set.gguf")
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

seen = []
for number, path in enumerate(sorted(folder.glob("set-*.gguf")), 1):
    reader = GGUFReader(path)
    tensor = reader.tensors[0]
    wrote = values[int(tensor.name[1:])]
    right = bool(np.array_equal(tensor.data, wrote))
    seen.append((reader.alignment, "general.alignment" in reader.fields, right))
    first = [float(x) for x in tensor.data[:3]]
    print(f"part {number}: {'right' if right else f'alignment {reader.alignment}, first values {first}'}")
expected = [(256, True, True), (32, False, False), (32, False, False)]
if seen != expected:
    sys.exit(f"the behaviour has changed: got {seen}, had {expected}")
PYTHON
mkdir "$work/set"
"$work/venv/bin/python" "$work/check.py" "$work/set"
