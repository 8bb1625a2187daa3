"""What is in memory, how much of it there is, and what gives way."""
