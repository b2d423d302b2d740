"""irq: from the interrupt to the poll."""
