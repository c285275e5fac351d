"""Between results folders: what moved, and several made one."""
