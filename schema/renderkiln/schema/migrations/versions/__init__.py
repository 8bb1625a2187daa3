"""One file per change of the ledger's form, in order."""
