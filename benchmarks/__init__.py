"""Measurements, each printed by a command; see README.md here."""
