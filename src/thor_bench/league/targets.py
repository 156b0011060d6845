"""What is timed: targets that are set before, by tuned AdamW.

``thor league --set-targets`` prints the lines of this table: AdamW at six rates around its own, the
best of them with three fresh seeds, the worst of these; budget and schedule are the league's. A
task that has no line is timed to its workload's own target.
"""

TARGETS: dict[str, float] = {}
