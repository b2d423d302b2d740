"""One module a probe; base.py says what a probe is, view.py how it may be shown."""
