"""Every optimizer that the bench trains, and what it uses on a workload."""
