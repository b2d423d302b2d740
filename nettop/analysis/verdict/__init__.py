"""What keeps one flow from being faster, by evidence."""
