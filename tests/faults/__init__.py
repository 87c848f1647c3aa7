"""Faults, made on purpose."""
