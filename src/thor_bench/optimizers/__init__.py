"""Every optimizer that the bench trains: settings, how it is built, the recipe it was tuned to."""
