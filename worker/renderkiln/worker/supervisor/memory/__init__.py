"""The supervisor's part in memory: what a renderer may take, what it does take, and what gives way under pressure."""
