"""Every optimizer with one setting on all tasks: a league."""
