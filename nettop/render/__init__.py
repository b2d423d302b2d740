"""Pure drawing: spans, text, graphs, heat maps, the order of rows."""
