"""The bench: train real workloads, compare optimizers by time to target, report.

Everything here stands on the public names of :mod:`torch_thor`; nothing in the optimizer knows of
the bench. Install it with ``pip install torch-thor[bench]`` and start with ``thor --help``.
"""
