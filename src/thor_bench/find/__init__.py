"""What to set on a task: short runs from one start, which are all taken back."""
