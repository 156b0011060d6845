"""Every optimizer tuned alike: the search, its trials, the study."""
