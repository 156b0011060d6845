"""The paper's experiments, and its claims one by one."""
