"""Across probes: the verdict, the page of one flow, baselines."""
