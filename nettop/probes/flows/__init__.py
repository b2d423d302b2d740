"""Flows: every connection, its RTT and its owner."""
