"""How far a map is from a straight line, one file a gauge."""
