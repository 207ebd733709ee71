"""Suites of attacks, the engine that runs them into a ledger, and what a ledger amounts to."""
