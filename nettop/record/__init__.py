"""Frames as files: schema, recordings, replay, redaction."""
