"""A side of a comparison that takes no steps really: side.py SECONDS [dies]."""

import sys

from benchmarks.throughput.worker import Parent

seconds, dies = float(sys.argv[1]), "dies" in sys.argv
parent = Parent()
print("what a trainer prints goes elsewhere")
parent.ready({"seconds": seconds}, {"side": "1.0"})
while parent.wants_step():
    if dies:
        sys.exit("it cannot")
    phases = {"rollout": seconds / 4, "reference": seconds / 4, "update": seconds / 2}
    parent.took(seconds, phases, {})
