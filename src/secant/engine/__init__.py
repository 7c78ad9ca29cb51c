"""Plans, groups and merge order; knows no model."""
