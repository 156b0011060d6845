"""What many devices would do: a cost model on one device's measured profile (docs/scaling.md)."""
