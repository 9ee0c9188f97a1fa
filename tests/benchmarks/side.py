"""A side of a comparison that takes no steps really: side.py SECONDS [dies | measures]."""

import sys

from benchmarks.throughput.worker import Parent

seconds, dies, measures = float(sys.argv[1]), "dies" in sys.argv, "measures" in sys.argv
parent = Parent()
print("what a trainer prints goes elsewhere")
parent.ready({"seconds": seconds}, {"side": "1.0"})
while parent.wants_step():
    if dies:
        sys.exit("it cannot")
    phases = {"rollout": seconds / 4, "reference": seconds / 4, "update": seconds / 2}
    parent.took(seconds, phases, {"mfu": 0.5, "mfu_update": 0.75, "peak_flops": 4e12} if measures else {})
if measures:
    rates = {"product_flops": 5e12, "decode_bytes_per_s": 3e9, "copy_bytes_per_s": 4e9}
    parent.left({"rollout_s": 2.0, "first_token_s": 0.5, **rates})
