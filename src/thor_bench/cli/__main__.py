"""``python -m thor_bench.cli``."""

from thor_bench.cli import main

main()
