"""What is timed: targets that are set before, by tuned AdamW.

``thor league --set-targets`` prints the lines of this table: AdamW at six rates around its own, the
best of them with three fresh seeds, the worst of these; budget and schedule are the league's. A
task that has no line is timed to its workload's own target.
"""

TARGETS: dict[str, float] = {
    "digits": 98.88,  # at 2 times its rate
    "tabular": 97.07,  # at 1 times its rate
    "pinn": 0.00409,  # at 8 times its rate
    "vae": 247.31,  # at 8 times its rate
    "unet": 0.1058,  # at 8 times its rate
    "lstm": 1.3027,  # at 8 times its rate
}
