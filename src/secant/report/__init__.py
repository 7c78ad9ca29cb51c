"""What a survey found, shown."""
