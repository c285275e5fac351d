"""From a grid to records: what is planned, how it is shared out among processes, and the work."""
