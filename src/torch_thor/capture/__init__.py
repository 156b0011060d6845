"""From a model and its backward to statistics: which layers, which calls, which rows count."""
