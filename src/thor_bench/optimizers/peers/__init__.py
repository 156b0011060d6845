"""One module a peer: its settings, how it is built, its recipes, all in ``PEERS``."""
