"""What is timed: targets that were set before, by tuned AdamW.

``thor league --set-targets`` made them: AdamW at six rates around its own, the best with three
fresh seeds, the worst of these, with every task's budget and the league's schedule.
"""

TARGETS: dict[str, float] = {}
