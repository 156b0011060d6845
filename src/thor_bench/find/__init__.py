"""What to set on a task: the beginning of a run, and single steps from there, all taken back."""
