"""Asking the system about devices, queues and interrupts; no privilege, no numpy."""
