"""Turns admitted updates into versions, and serves people: jobs, leases, fold, commit, API and commands."""
