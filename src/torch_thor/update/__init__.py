"""From directions to a step: groups, momentum, decay, and the rule of all other parameters."""
