"""The hub of a fleet: one ledger of all that its workers did, and whatever Redis lost put back."""
