"""Throughput of the interface."""
