"""The commands of `sweeps`, one a module: each parses, prints, and calls the service."""
