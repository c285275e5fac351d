"""Published tables and figures by name, and ours beside them."""
