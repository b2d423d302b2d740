"""Stages: the delay of each stage of the stack."""
