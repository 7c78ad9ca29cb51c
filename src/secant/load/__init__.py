"""Models and data from disk, hub or memory; safe by default."""
