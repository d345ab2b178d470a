"""The ledger and its HTTP face. Starts without torch."""
