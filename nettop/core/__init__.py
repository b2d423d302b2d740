"""What is measured, as values, and how it is said: pure, no input or output."""
