"""The HTTP API: translations of `SweepService`, and who may ask. `make_app` is the whole of it."""
