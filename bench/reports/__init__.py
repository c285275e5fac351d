"""From records to tables and pictures; no model is touched."""
