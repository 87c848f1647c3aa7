"""The pages: what `sweeps serve` shows in a browser. `routes` answers, `shown` gathers what the templates say, `assets`
is what a browser fetches besides.
"""
