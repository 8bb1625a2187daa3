"""What was in memory while a worker rendered: read from this machine's ledger, summed up, and drawn."""
