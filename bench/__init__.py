"""The instrument: data, networks, training, the grid, records and reports."""
